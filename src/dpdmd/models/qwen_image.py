"""Qwen-Image: flow prediction, time fed as t, packed latents, guidance that keeps the conditional length."""

from functools import cached_property
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor, nn

from dpdmd.denoiser import Condition
from dpdmd.grids import Grid
from dpdmd.models import packed
from dpdmd.models.base import LatentShape
from dpdmd.models.parts import (
    exact_flow_scheduler,
    latent_size,
    load_config,
    load_network,
    load_part,
    load_text_pipeline,
)
from dpdmd.paths import FlowPath, Prediction, from_velocity
from dpdmd.rollout import StudentKind

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length
SAMPLE_SIZE = 128  # its default height and width in latent pixels


def length_preserving_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: Tensor) -> Prediction:
    """w = u + s (c - u) of the velocities, then w |c| / |w| in every packed token, as the stock pipeline does.

    x_t: (B, C, H, W); t: (B,); scale: (B, 1, 1, 1). Where w is zero it stays zero.
    """
    conditional, unconditional = packed.pack(cond.velocity), packed.pack(uncond.velocity)
    velocity = unconditional + scale[:, 0] * (conditional - unconditional)
    tiny = torch.finfo(velocity.dtype).tiny
    velocity = velocity * (_length(conditional) / _length(velocity).clamp_min(tiny))
    return from_velocity(x_t, packed.unpack(velocity, x_t.shape[1:]), t)


def _length(tokens: Tensor) -> Tensor:
    """(B, N, D) to (B, N, 1)."""
    return torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)


class QwenImageAdapter:
    """See `models.base.ModelAdapter`.

    The unconditional prompt is "", as for every family: the stock pipeline called with negative_prompt="". Its
    documentation suggests " ", which its chat template makes another prompt.
    """

    pipeline_class = QwenImagePipeline
    network_class = QwenImageTransformer2DModel
    network_name = "transformer"
    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 4.0
    num_inference_steps = 50
    guidance_rule = staticmethod(length_preserving_rule)
    embedded_guidance = None
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str):
        self.source = source
        self.network_config = load_config(QwenImageTransformer2DModel, source, "transformer")
        self.vae_config = load_config(AutoencoderKLQwenImage, source, "vae")
        self.scheduler_config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")

    @cached_property
    def texts(self) -> QwenImagePipeline:
        """Tokenizer and text encoder."""
        return load_text_pipeline(QwenImagePipeline, self.source, "transformer", "vae")

    @cached_property
    def vae(self) -> AutoencoderKLQwenImage:
        """The autoencoder, one of videos."""
        return load_part(AutoencoderKLQwenImage, self.source, "vae")

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W), not packed; both sides must be divisible by the autoencoder's factor times 2."""
        factor = 2 ** len(self.vae_config["temperal_downsample"])
        default = SAMPLE_SIZE * factor
        size = latent_size(self.source, height or default, width or default, factor=factor, patch=2)
        return self.network_config["in_channels"] // 4, *size

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        return load_network(QwenImageTransformer2DModel, self.source, "transformer")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D), zero behind the end of shorter prompts, and `prompt_mask` (B, L), 1 = a token."""
        embeds, mask = self.texts.encode_prompt(prompt=list(prompts), max_sequence_length=NUM_TOKENS)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask  # None: all are tokens
        return Condition({"prompt_embeds": embeds.cpu().clone(), "prompt_mask": mask.cpu().clone()})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The transformer's velocity at x_t (B, C, H, W), t (B,), as (x0, eps) in fp32."""
        height, width = x_t.shape[2:]
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_hidden_states_mask=cond.tensors["prompt_mask"],
            timestep=t,  # the network multiplies by 1000
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1]; this autoencoder clamps by itself."""
        config, latents = self.vae.config, latents.to(self.vae.device)
        mean, std = (latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        video = (latents * std + mean)[:, :, None]  # one frame
        return self.vae.decode(video, return_dict=False)[0][:, :, 0]

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock pipeline's: uniform, shifted for this size, then stretched so that it ends at shift_terminal."""
        return packed.stock_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift for this size."""
        return packed.uniform_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def student_scheduler(self, kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
        """Takes `sigmas=` as they stand."""
        return exact_flow_scheduler(self.scheduler_config, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance."""
        return {"sigmas": list(grid.times[:-1]), "true_cfg_scale": 1.0}
