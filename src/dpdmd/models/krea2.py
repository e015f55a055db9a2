"""Krea 2: velocity prediction, timestep t, packed latents, masked tokens of several layers of the text encoder."""

from typing import Any, ClassVar

import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed
from dpdmd.models.base import LatentShape
from dpdmd.models.one_frame import OneFrameAdapter
from dpdmd.models.parts import read_index
from dpdmd.store.errors import InputError

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length
NUM_SUFFIX_TOKENS = 5  # of the chat template, which are among them
DISTILLED_MU, DISTILLED_STEPS = 1.15, 8  # of the stock pipeline for Krea-2-Turbo


class Krea2Adapter(OneFrameAdapter, packed.PackedAdapter):
    """Adapter of Krea-2-Raw, and of Krea-2-Turbo, whose pipeline is marked as distilled.

    The stock pipeline defines guidance as c + g (c - u) = u + (g + 1) (c - u). Our guidance_scale is therefore g + 1,
    and g = 0 turns guidance off. The defaults are those of the stock pipeline, g = 4.5 and 28 steps.
    """

    pipeline_class = Krea2Pipeline
    network_class = Krea2Transformer2DModel
    guidance_scale = 5.5
    num_inference_steps = 28
    unguided: ClassVar = {"guidance_scale": 0.0}
    token_limits = (("tokenizer", NUM_TOKENS - NUM_SUFFIX_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str):
        super().__init__(source)
        index = read_index(source)
        if index.get("patch_size", 2) != 2:
            raise InputError(f"{source}: a Krea 2 pipeline with patch_size {index['patch_size']} is not supported")
        self._is_distilled = bool(index.get("is_distilled"))
        if self._is_distilled:
            self.guidance_scale, self.num_inference_steps = 1.0, DISTILLED_STEPS

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, layers, D) and `mask` (B, L), true for tokens.

        The stock pipeline pads between prompt and suffix. Padding is never attended to and takes no position, so it is
        dropped.
        """
        embeds, mask = self.texts.encode_prompt(list(prompts), max_sequence_length=NUM_TOKENS)
        tokens = [row[kept].cpu() for row, kept in zip(embeds, mask, strict=True)]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in tokens], batch_first=True)
        return Condition({"prompt_embeds": pad_sequence(tokens, batch_first=True), "mask": mask})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the largest number of tokens."""
        shape, config = (num_prompts, NUM_TOKENS), self.network_config
        embeds = torch.zeros(*shape, config["num_text_layers"], config["text_hidden_dim"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.bool)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction. All tokens of a prompt have the position 0, 0, 0."""
        embeds = cond.tensors["prompt_embeds"]
        positions = packed.image_ids(x_t)
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=embeds,
            encoder_attention_mask=cond.tensors["mask"],
            timestep=t,
            position_ids=torch.cat([positions.new_zeros(embeds.shape[1], 3), positions]),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The last tokens; those of the prompt come before them."""
        return output[:, -(x_t.shape[2:].numel() // 4) :]

    def dynamic_shift(self, num_steps: int, latent_shape: LatentShape) -> float:
        """mu by the image's size, or the one of Krea-2-Turbo."""
        return DISTILLED_MU if self._is_distilled else super().dynamic_shift(num_steps, latent_shape)
