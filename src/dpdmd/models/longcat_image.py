"""LongCat-Image: velocity prediction, timestep t, packed latents, guidance that never lengthens a token."""

from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, LongCatImagePipeline, LongCatImageTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed, parts
from dpdmd.models.lengths import guided_to_length
from dpdmd.store.errors import InputError

NUM_TOKENS = 512  # to which the stock pipeline pads every prompt, and where it begins to count rows and columns
NUM_CHANNELS = 16  # of latents, which the stock pipeline takes for granted


def never_longer_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: float) -> Prediction:
    """Guidance that shortens every packed token to the length of the conditional velocity, and lengthens none.

    Source: the stock pipeline, whose enable_cfg_renorm is on by default, with a factor of at most 1.
    """
    velocity = guided_to_length(packed.pack(cond.velocity), packed.pack(uncond.velocity), scale, longest=1.0)
    return from_velocity(x_t, packed.unpack(velocity, x_t.shape[1:]), t)


class LongCatImageAdapter(packed.PackedAdapter):
    """Adapter of LongCat-Image.

    By default the stock pipeline has its text encoder rewrite every prompt. Neither teacher nor student does: prompts
    are taken as they are written. Stock diffusers has no loader for its LoRAs, so that exports are merged, and its call
    takes no callback, so that no student renews its noise before the last step alone.
    """

    pipeline_class = LongCatImagePipeline
    network_class = LongCatImageTransformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 4.5
    num_inference_steps = 50
    guidance_rule = staticmethod(never_longer_rule)
    unguided: ClassVar = {"guidance_scale": 1.0, "enable_prompt_rewrite": False}
    callback = None
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, source: str):
        super().__init__(source)
        if self.latent_shape()[0] != NUM_CHANNELS:
            raise InputError(f"{source}: LongCat-Image needs {NUM_CHANNELS} latent channels")

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with only its tokenizer and text encoder."""
        return parts.load_text_pipeline(self.pipeline_class, self.source, self.network_name, "vae", "text_processor")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 512, D); the network sees the padding as well."""
        embeds, _ = self.texts.encode_prompt(list(prompts))
        return Condition({"prompt_embeds": embeds.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the 512 tokens."""
        size = self.network_config["joint_attention_dim"]
        return Condition({"prompt_embeds": torch.zeros(num_prompts, NUM_TOKENS, size)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction.

        Positions: token i of a prompt has 0, i, i; a patch of the image 1, 512 + row, 512 + column.
        """
        embeds, places = cond.tensors["prompt_embeds"], packed.image_ids(x_t)
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=embeds,
            timestep=t,  # the network multiplies by 1000
            txt_ids=torch.arange(embeds.shape[1], device=x_t.device).float()[:, None] * places.new_tensor([0, 1, 1]),
            img_ids=places + places.new_tensor([1, NUM_TOKENS, NUM_TOKENS]),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)
