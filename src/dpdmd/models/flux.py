"""FLUX.1: flow prediction, time fed as t, packed latents; the dev model takes its guidance as an input."""

from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from dpdmd.denoiser import Condition
from dpdmd.grids import Grid
from dpdmd.guidance import linear_rule
from dpdmd.models import packed
from dpdmd.models.base import LatentShape
from dpdmd.models.parts import (
    exact_flow_scheduler,
    latent_size,
    load_config,
    load_network,
    load_part,
    load_text_pipeline,
    unscale,
)
from dpdmd.paths import FlowPath, Prediction, from_velocity
from dpdmd.rollout import StudentKind

NUM_T5_TOKENS = 512  # the stock pipeline's default max_sequence_length
SAMPLE_SIZE = 128  # its default height and width in latent pixels
EMBEDDED_GUIDANCE = 3.5  # its default guidance_scale, which is this input and no classifier-free guidance


class FluxAdapter:
    """See `models.base.ModelAdapter`.

    `guidance_scale` is classifier-free guidance (the stock pipeline's true_cfg_scale), off by default. Guidance of a
    guidance-distilled network (FLUX.1-dev) is `embedded_guidance`, None for one that takes none (FLUX.1-schnell). Grids
    depend on the image size where the scheduler shifts dynamically.
    """

    pipeline_class = FluxPipeline
    network_class = FluxTransformer2DModel
    network_name = "transformer"
    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 1.0
    num_inference_steps = 28
    guidance_rule = staticmethod(linear_rule)
    token_limits = (("tokenizer", None), ("tokenizer_2", NUM_T5_TOKENS))
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, source: str):
        self.source = source
        self.network_config = load_config(FluxTransformer2DModel, source, "transformer")
        self.vae_config = load_config(AutoencoderKL, source, "vae")
        self.scheduler_config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")
        self.embedded_guidance = EMBEDDED_GUIDANCE if self.network_config.get("guidance_embeds") else None

    @cached_property
    def texts(self) -> FluxPipeline:
        """Tokenizers and text encoders."""
        return load_text_pipeline(FluxPipeline, self.source, "transformer", "vae")

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return load_part(AutoencoderKL, self.source, "vae")

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W), not packed; both sides must be divisible by the autoencoder's factor times 2."""
        factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        default = SAMPLE_SIZE * factor
        size = latent_size(self.source, height or default, width or default, factor=factor, patch=2)
        return self.network_config["in_channels"] // 4, *size

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        return load_network(FluxTransformer2DModel, self.source, "transformer")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 512, D) of T5 and `pooled_prompt_embeds` (B, P) of CLIP."""
        embeds, pooled, _ = self.texts.encode_prompt(
            prompt=list(prompts), prompt_2=None, max_sequence_length=NUM_T5_TOKENS
        )
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The transformer's velocity at x_t (B, C, H, W), t (B,), as (x0, eps) in fp32.

        embedded_guidance: default the adapter's own; a network without guidance embedding is fed none.
        """
        value = self.embedded_guidance if embedded_guidance is None else embedded_guidance
        embeds, (height, width) = cond.tensors["prompt_embeds"], x_t.shape[2:]
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=embeds,
            pooled_projections=cond.tensors["pooled_prompt_embeds"],
            timestep=t,  # the network multiplies by 1000, as it does with guidance
            guidance=None if self.embedded_guidance is None else torch.full_like(t, value),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x_t.device),
            img_ids=_image_ids(height // 2, width // 2, x_t.device),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], not clamped."""
        return self.vae.decode(unscale(latents, self.vae), return_dict=False)[0]

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock pipeline's, which for FLUX.1 is the uniform one up to fp32 rounding."""
        return packed.stock_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift for this size."""
        return packed.uniform_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def student_scheduler(self, kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
        """Takes `sigmas=` as they stand."""
        return exact_flow_scheduler(self.scheduler_config, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas and what it is fed as guidance; no classifier-free guidance, which is off by default."""
        arguments = {"sigmas": list(grid.times[:-1])}
        if self.embedded_guidance is None:
            return arguments
        value = self.embedded_guidance if embedded_guidance is None else embedded_guidance
        return arguments | {"guidance_scale": value}


def _image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 3): 0, row and column of every token."""
    return torch.cartesian_prod(*(torch.arange(float(n), device=device) for n in (1, height, width)))
