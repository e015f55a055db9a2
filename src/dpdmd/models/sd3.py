"""Stable Diffusion 3 and 3.5: flow prediction, time fed as 1000 t, plain guidance, latents as they are."""

from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dpdmd.denoiser import Condition
from dpdmd.grids import Grid, uniform_grid
from dpdmd.guidance import linear_rule
from dpdmd.models.base import LatentShape
from dpdmd.models.folding import FoldedJointAttention
from dpdmd.models.parts import (
    exact_flow_scheduler,
    flow_grid,
    latent_size,
    load_config,
    load_network,
    load_part,
    load_text_pipeline,
    unscale,
)
from dpdmd.paths import FlowPath, Prediction, from_velocity
from dpdmd.rollout import StudentKind

NUM_T5_TOKENS = 256  # the stock pipeline's default max_sequence_length


class SD3Adapter:
    """See `models.base.ModelAdapter`.

    Where T5 says nothing (a missing encoder, or one whose final norm is zero) its 256 equal zero tokens are folded into
    one (`models.folding`), which is exact.
    """

    pipeline_class = StableDiffusion3Pipeline
    network_class = SD3Transformer2DModel
    network_name = "transformer"
    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 3.5
    num_inference_steps = 30
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance = None
    token_limits = (("tokenizer", None), ("tokenizer_2", None), ("tokenizer_3", NUM_T5_TOKENS))
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str):
        self.source = source
        self.network_config = load_config(SD3Transformer2DModel, source, "transformer")
        self.vae_config = load_config(AutoencoderKL, source, "vae")
        self.scheduler_config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")
        if self.scheduler_config.get("use_dynamic_shifting"):
            raise ValueError(f"{source}: a scheduler with dynamic shifting is not supported for SD3")

    @cached_property
    def texts(self) -> StableDiffusion3Pipeline:
        """Tokenizers and text encoders."""
        return load_text_pipeline(StableDiffusion3Pipeline, self.source, "transformer", "vae")

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return load_part(AutoencoderKL, self.source, "vae")

    @property
    def _num_folded_tokens(self) -> int:
        t5 = self.texts.text_encoder_3
        return NUM_T5_TOKENS if t5 is None or not bool(t5.encoder.final_layer_norm.weight.any()) else 1

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W); both sides must be divisible by the autoencoder's factor times the patch size."""
        factor, config = 2 ** (len(self.vae_config["block_out_channels"]) - 1), self.network_config
        default = config["sample_size"] * factor
        size = latent_size(self.source, height or default, width or default, factor=factor, patch=config["patch_size"])
        return config["in_channels"], *size

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        network = load_network(SD3Transformer2DModel, self.source, "transformer")
        network.set_attn_processor(FoldedJointAttention(self._num_folded_tokens))
        return network

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `pooled_prompt_embeds` (B, P)."""
        embeds, _, pooled, _ = self.texts.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=NUM_T5_TOKENS,
        )
        embeds = embeds[:, : embeds.shape[1] - self._num_folded_tokens + 1]
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The transformer's velocity at x_t (B, C, H, W), t (B,), as (x0, eps) in fp32."""
        velocity = network(
            hidden_states=x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            pooled_projections=cond.tensors["pooled_prompt_embeds"],
            timestep=1000 * t,
            return_dict=False,
        )[0]
        return from_velocity(x_t, velocity, t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], not clamped."""
        return self.vae.decode(unscale(latents, self.vae), return_dict=False)[0]

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """What FlowMatchEulerDiscreteScheduler.set_timesteps(num_steps) gives."""
        return flow_grid(self.scheduler_config, num_steps)

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift."""
        return uniform_grid(num_steps, shift=self.scheduler_config["shift"])

    def student_scheduler(self, kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
        """Takes `sigmas=` as they stand."""
        return exact_flow_scheduler(self.scheduler_config, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance."""
        return {"sigmas": list(grid.times[:-1]), "guidance_scale": 1.0}
