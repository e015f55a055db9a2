"""Sana (arXiv 2410.10629): flow prediction, time fed as 1000 t times `timestep_scale`, plain guidance, masked tokens.

Released checkpoints carry a DPMSolverMultistepScheduler on a shifted flow. Its second-order steps remember the step
before, which neither a student nor an anchor can; its shift is kept and its solver replaced by Euler steps. differs:
that scheduler starts at the shifted .999 instead of at 1 and feeds the network 1000 t cut to a whole number.
"""

import inspect
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn

from dpdmd.denoiser import Condition, concatenate
from dpdmd.grids import Grid, uniform_grid
from dpdmd.guidance import linear_rule
from dpdmd.models.base import LatentShape
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

# The stock call puts these sentences before every prompt, and none before the negative one.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaAdapter:
    """See `models.base.ModelAdapter`.

    Guidance 4.5 is the stock call's default; 28 steps are what Sana's authors take with Euler (20 with DPM-Solver).
    """

    pipeline_class = SanaPipeline
    network_class = SanaTransformer2DModel
    network_name = "transformer"
    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 4.5
    num_inference_steps = 28
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance = None
    token_limits = (("tokenizer", 300),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str):
        self.source = source
        self.network_config = load_config(SanaTransformer2DModel, source, "transformer")
        self.vae_config = load_config(AutoencoderDC, source, "vae")
        self.scheduler_config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")
        name = self.scheduler_config.get("_class_name")
        self.has_euler = name == FlowMatchEulerDiscreteScheduler.__name__
        is_flow = self.has_euler or self.scheduler_config.get("use_flow_sigmas")
        if not is_flow or self.scheduler_config.get("use_dynamic_shifting"):
            raise ValueError(f"{source}: Sana needs a scheduler of a flow with a fixed shift, got {name}")
        self.shift = self.scheduler_config["shift" if self.has_euler else "flow_shift"]

    @cached_property
    def texts(self) -> SanaPipeline:
        """Tokenizer and text encoder."""
        return load_text_pipeline(SanaPipeline, self.source, "transformer", "vae")

    @cached_property
    def vae(self) -> AutoencoderDC:
        """The autoencoder."""
        return load_part(AutoencoderDC, self.source, "vae")

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.vae_config["encoder_block_out_channels"]) - 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W); both sides must be divisible by the autoencoder's factor times the patch size."""
        factor, config = self._factor, self.network_config
        default = config["sample_size"] * factor
        size = latent_size(self.source, height or default, width or default, factor=factor, patch=config["patch_size"])
        return config["in_channels"], *size

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        return load_network(SanaTransformer2DModel, self.source, "transformer")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token.

        As the stock call by default: INSTRUCTION stands before every prompt except "", the unconditional one. Tokens
        behind the end of a prompt are left out: their attention weight is exp(-10000) = 0.
        """
        return concatenate(self._encode_one(prompt) for prompt in prompts)

    def _encode_one(self, prompt: str) -> Condition:
        embeds, mask, _, _ = self.texts.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            complex_human_instruction=INSTRUCTION if prompt else None,
        )
        num_tokens = int(mask.sum())
        return Condition({"prompt_embeds": embeds[:, :num_tokens].cpu(), "mask": mask[:, :num_tokens].cpu()})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The transformer's velocity at x_t (B, C, H, W), t (B,), as (x0, eps) in fp32.

        A network with twice the channels also returns a learned variance, which a flow has no use for.
        """
        out = network(
            hidden_states=x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.tensors["mask"],
            timestep=1000 * t * self.network_config.get("timestep_scale", 1.0),
            return_dict=False,
        )[0]
        return from_velocity(x_t, out[:, : x_t.shape[1]], t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], not clamped."""
        return self.vae.decode(unscale(latents, self.vae), return_dict=False)[0]

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock Euler scheduler's grid; in place of DPM-Solver's, the uniform one, less than .001 away from it."""
        return flow_grid(self.scheduler_config, num_steps) if self.has_euler else self.uniform_grid(num_steps)

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift."""
        return uniform_grid(num_steps, shift=self.shift)

    def student_scheduler(self, kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
        """Takes `sigmas=` as they stand; it replaces a DPM-Solver."""
        return exact_flow_scheduler(self.scheduler_config if self.has_euler else {}, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance, the model's own size.

        The stock call would make 1024 x 1024 of every model, and would draw other sizes at the nearest of its own list.
        """
        size = self.network_config["sample_size"] * self._factor
        plain = {"height": size, "width": size, "use_resolution_binning": False}
        return {"sigmas": list(grid.times[:-1]), "guidance_scale": 1.0} | plain
