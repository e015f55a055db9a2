"""Stable Diffusion 3 and 3.5: flow prediction, time fed as 1000 t, plain guidance, latents as they are."""

import shutil
from pathlib import Path as FilePath

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dpdmd.denoiser import Condition
from dpdmd.files import atomic_path
from dpdmd.grids import Grid, uniform_grid
from dpdmd.models.folding import FoldedJointAttention
from dpdmd.paths import FlowPath, Prediction, from_velocity

NUM_T5_TOKENS = 256  # the stock pipeline's default max_sequence_length

SNIPPET = """\
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained({folder!r})
generator = torch.Generator().manual_seed(0)
image = pipe({prompt!r}, sigmas={sigmas}, guidance_scale=1.0, generator=generator).images[0]
"""


class SD3Adapter:
    """See `models.base.ModelAdapter`.

    Where T5 says nothing (a missing encoder, or one whose final norm is zero) its 256 equal zero tokens are folded into
    one (`models.folding`), which is exact.
    """

    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 3.5
    num_inference_steps = 30

    def __init__(self, source: str):
        self.source = source
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(source, transformer=None, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.transformer_config = SD3Transformer2DModel.load_config(source, subfolder="transformer")
        for part in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2):
            part.eval().requires_grad_(False)
        scheduler = self.pipeline.scheduler.config
        if scheduler.get("use_dynamic_shifting"):
            raise ValueError(f"{source}: a scheduler with dynamic shifting is not supported for SD3")
        self.shift = scheduler.shift

    @property
    def _num_folded_tokens(self) -> int:
        t5 = self.pipeline.text_encoder_3
        return NUM_T5_TOKENS if t5 is None or not bool(t5.encoder.final_layer_norm.weight.any()) else 1

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W); both sides must be divisible by the autoencoder's factor times the patch size."""
        factor, config = self.pipeline.vae_scale_factor, self.transformer_config
        default = config["sample_size"] * factor
        size = (height or default, width or default)
        unit = factor * config["patch_size"]
        for name, value in zip(("height", "width"), size, strict=True):
            if value % unit:
                raise ValueError(f"{name} must be divisible by {unit} for {self.source}, got {value}")
        return config["in_channels"], size[0] // factor, size[1] // factor

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        network = SD3Transformer2DModel.from_pretrained(self.source, subfolder="transformer", dtype=torch.float32)
        network.set_attn_processor(FoldedJointAttention(self._num_folded_tokens))
        return network

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `pooled_prompt_embeds` (B, P)."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=NUM_T5_TOKENS,
        )
        embeds = embeds[:, : embeds.shape[1] - self._num_folded_tokens + 1]
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
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
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return vae.decode(latents.to(vae.device), return_dict=False)[0]

    def stock_grid(self, num_steps: int) -> Grid:
        """What FlowMatchEulerDiscreteScheduler.set_timesteps(num_steps) gives."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps)
        return Grid(tuple(scheduler.sigmas.tolist()))

    def uniform_grid(self, num_steps: int) -> Grid:
        """Uniform, then the scheduler's shift."""
        return uniform_grid(num_steps, shift=self.shift)

    def export(self, network: nn.Module, grid: Grid, out: FilePath) -> str:
        """A StableDiffusion3Pipeline folder; its scheduler has shift 1, so that `sigmas=` is taken as it stands."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config, shift=1.0)
        components = {**self.pipeline.components, "transformer": network, "scheduler": scheduler}
        with atomic_path(out) as temporary:
            try:
                StableDiffusion3Pipeline(**components).save_pretrained(temporary, safe_serialization=True)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return SNIPPET.format(folder=str(out), prompt="{prompt}", sigmas=list(grid.times[:-1]))
