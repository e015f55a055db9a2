"""Lumina-Image 2.0: negated velocity, timestep 1 - t, guidance that keeps the length of each row of the latents."""

from typing import Any, cast

import torch
from diffusers import AutoencoderKL, Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.devices import to_device
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import lumina2_names
from dpdmd.models.base import LatentShape, ModelAdapter, empty_network
from dpdmd.models.flow_scheduler import token_shift
from dpdmd.models.lengths import guided_to_length
from dpdmd.models.stock import StockAdapter
from dpdmd.store.errors import InputError

NUM_TOKENS = 256  # the stock pipeline's default max_sequence_length, its system prompt included
FACTOR = 8  # pixels per latent pixel, which the stock pipeline takes for granted


def row_preserving_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: float) -> Prediction:
    """Guidance rescaled to the length of the conditional velocity in every row of every channel (B, C, H, W).

    Source: the stock pipeline, whose cfg_normalization is on by default.
    """
    return from_velocity(x_t, guided_to_length(cond.velocity, uncond.velocity, scale), t)


class Lumina2Adapter(StockAdapter):
    """Adapter of Lumina-Image 2.0. The default shift of its checkpoints is fixed."""

    pipeline_class = Lumina2Pipeline
    network_class = Lumina2Transformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 4.0
    num_inference_steps = 30
    guidance_rule = staticmethod(row_preserving_rule)
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("layers",)

    def __init__(self, source: str):
        super().__init__(source)
        if self.vae_factor != FACTOR:
            raise InputError(
                f"{source}: Lumina 2 needs an autoencoder with {FACTOR} pixels per latent pixel, got {self.vae_factor}"
            )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token; padding, which the network drops, is dropped.

        As in the stock pipeline, a system prompt comes before every prompt except "", the unconditional one.
        """
        return concatenate(self._encode_one(prompt, negative=not prompt) for prompt in prompts)

    @torch.no_grad()
    def encode_negative(self, prompts: list[str]) -> Condition:
        """Like `encode`, but as in the stock pipeline never after the system prompt."""
        return concatenate(self._encode_one(prompt, negative=True) for prompt in prompts)

    def _encode_one(self, prompt: str, *, negative: bool) -> Condition:
        # The second half of what it returns is of the negative prompt.
        texts = ([""], True, [prompt]) if negative else ([prompt], False)
        tokens, mask = self.texts.encode_prompt(*texts, max_sequence_length=NUM_TOKENS)[2 if negative else 0 :][:2]
        length = int(mask.sum())
        return Condition({"prompt_embeds": tokens[:, :length].cpu(), "mask": mask[:, :length].cpu()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the largest number of tokens."""
        shape = num_prompts, NUM_TOKENS
        embeds = torch.zeros(*shape, self.network_config["cap_feat_dim"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's negated velocity to a prediction.

        The network counts the tokens of a mask, for which it would wait for a GPU, so it is given one on the CPU. Its
        tables of positions are no buffers: where they are moved with it, it does not copy them in every call.
        """
        stock: Any = getattr(network, "module", network)  # without its wrapper for several processes
        stock.rope_embedder.freqs_cis = [to_device(table, x_t.device) for table in stock.rope_embedder.freqs_cis]
        for block in stock.context_refiner:
            if not block._forward_pre_hooks:
                block.register_forward_pre_hook(_mask_to_device)
        out = network(
            hidden_states=x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.mask("mask"),
            timestep=1 - t,
            return_dict=False,
        )[0]
        return from_velocity(x_t, -out, t)

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The tokens after those of each sample's own prompt."""
        number = x_t.shape[2:].numel() // self.network_config["patch_size"] ** 2
        starts = cond.mask("mask").sum(dim=1).tolist()
        return torch.stack([row[start : start + number] for row, start in zip(output, starts, strict=True)])

    def dynamic_shift(self, num_steps: int, latent_shape: LatentShape) -> float:
        """mu for the number of channels: the stock pipeline takes that axis of its latents for the tokens."""
        return token_shift(self.scheduler_config, latent_shape[0])

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of the original layout for a network of the public model's widths, else diffusers' own."""
        network = empty_network(cast("ModelAdapter", self))
        if not lumina2_names.is_readable(network):
            return super().lora_names(layers)
        return lumina2_names.lora_names(layers, network)


def _mask_to_device(block: nn.Module, args: tuple) -> tuple:
    """A refining block's arguments, (tokens, mask, positions), with the mask where the tokens are."""
    tokens, mask, *rest = args
    return tokens, to_device(mask, tokens.device), *rest
