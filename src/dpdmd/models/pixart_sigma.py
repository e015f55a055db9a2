"""PixArt-Sigma: eps prediction beside a learned variance, plain guidance, latents passed unpacked, masked tokens."""

from typing import Any, ClassVar

import diffusers
import torch
from diffusers import PixArtSigmaPipeline
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.paths import Prediction
from dpdmd.models.noise import NoiseAdapter
from dpdmd.store.errors import InputError

NUM_TOKENS = 300  # the stock pipeline's default max_sequence_length
AS_WRITTEN: dict[str, Any] = {"clean_caption": False}  # else packages that may be missing change the text
NO_SIZE = {"resolution": None, "aspect_ratio": None}  # what the stock pipeline gives its network


class PixArtTransformer2DModel(diffusers.PixArtTransformer2DModel, PeftAdapterMixin):
    """The stock network with the methods for adapters that diffusers gives its other transformers."""


class PixArtSigmaAdapter(NoiseAdapter):
    """Adapter of PixArt-Sigma. Stock diffusers has no loader for its LoRAs, so that exports are merged."""

    pipeline_class = PixArtSigmaPipeline
    network_class = PixArtTransformer2DModel
    older_names = ("Transformer2DModel",)
    guidance_scale = 4.5
    num_inference_steps = 20
    callback = "callback"
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)
    unguided: ClassVar = {"guidance_scale": 1.0, "use_resolution_binning": False, **AS_WRITTEN}

    def __init__(self, source: str):
        super().__init__(source)
        config = self.network_config
        asks_for_size = config.get("use_additional_conditions")
        if config["sample_size"] == 128 if asks_for_size is None else asks_for_size:
            raise InputError(f"{source}: a PixArt network that is given the image's size is not supported")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token.

        Padding tokens are dropped: in the stock pipeline their attention weight is exp(-10000) = 0.
        """
        return concatenate(self._encode_one(prompt) for prompt in prompts)

    def _encode_one(self, prompt: str) -> Condition:
        embeds, mask, *_ = self.texts.encode_prompt(
            [prompt], do_classifier_free_guidance=False, max_sequence_length=NUM_TOKENS, **AS_WRITTEN
        )
        length = int(mask.sum())
        return Condition({"prompt_embeds": embeds[:, :length].cpu(), "mask": mask[:, :length].cpu()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the largest number of tokens that the text encoder is given."""
        shape = num_prompts, NUM_TOKENS
        embeds = torch.zeros(*shape, self.network_config["caption_channels"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's eps or v to a prediction, without the variance that it may return as well."""
        output = network(
            x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.tensors["mask"],
            timestep=self.timestep(t),
            added_cond_kwargs=NO_SIZE,
            return_dict=False,
        )[0]
        return self.converted(x_t, output[:, : x_t.shape[1]], t)
