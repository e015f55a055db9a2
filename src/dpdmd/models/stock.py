"""What the adapters of stock diffusers pipelines share; a family overrides what it does differently."""

from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from dpdmd.method.grids import Grid
from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import FlowPath, Path
from dpdmd.method.rollout import StudentKind
from dpdmd.models import flow_scheduler, parts
from dpdmd.models.base import LatentShape


class StockAdapter:
    """A `models.base.ModelAdapter` but for `encode` and `predict`: by default a flow with plain guidance.

    A family sets `pipeline_class`, `network_class`, `vae_class`, `guidance_scale`, `num_inference_steps`,
    `token_limits`, `lora_targets` and `block_lists`; `feature_lists` where not all of these see the picture.

    network_config, vae_config, scheduler_config: the JSON that the parts were saved with.
    unguided: arguments of the stock pipeline that turn its classifier-free guidance off.
    """

    pipeline_class: type
    network_class: type
    vae_class: type
    network_name = "transformer"
    path: Path = FlowPath()
    prediction_space = "velocity"
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance: float | None = None
    unguided: ClassVar[dict[str, float]] = {"guidance_scale": 1.0}

    def __init__(self, source: str):
        """Raises ValueError when a configuration is missing; families, when they cannot represent what it says."""
        self.source = source
        self.network_config = parts.load_config(self.network_class, source, self.network_name)
        self.vae_config = parts.load_config(self.vae_class, source, "vae")
        # The JSON is read alike by every scheduler class.
        self.scheduler_config = parts.load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with tokenizers and text encoders only."""
        return parts.load_text_pipeline(self.pipeline_class, self.source, self.network_name, "vae")

    @cached_property
    def vae(self) -> nn.Module:
        """The autoencoder."""
        return parts.load_part(self.vae_class, self.source, "vae")

    @property
    def feature_lists(self) -> tuple[str, ...]:
        """All blocks."""
        return self.block_lists

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel and side."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W); by default the network's sample_size."""
        config = self.network_config
        size = self.latent_size(height, width, default=config["sample_size"], patch=config.get("patch_size", 1))
        return config["in_channels"], *size

    def latent_size(self, height: int | None, width: int | None, *, default: int, patch: int) -> tuple[int, int]:
        """Height and width of latents from pixels, `default` of latents where one is None.

        Raises ValueError unless both divide by vae_factor * patch.
        """
        factor = self.vae_factor
        height, width = height or default * factor, width or default * factor
        for name, value in (("height", height), ("width", width)):
            if value % (factor * patch):
                raise ValueError(f"{name} must be divisible by {factor * patch} for {self.source}, got {value}")
        return height // factor, width // factor

    def load_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The pretrained network."""
        return parts.load_network(self.network_class, self.source, self.network_name, dtype)

    def picture_tokens(self, output: Any, x_t: Tensor) -> Tensor:
        """The hidden states, which transformer blocks return behind the prompt's."""
        return output[-1] if isinstance(output, tuple) else output

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's images of latents / scaling_factor + shift_factor."""
        config = self.vae.config
        latents = latents.to(self.vae.device) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.vae.decode(latents, return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's distribution, (latents - shift_factor) scaling_factor."""
        config = self.vae.config
        latents = self.vae.encode(images.to(self.vae.device)).latent_dist.mode()
        return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """That of a pipeline which hands its scheduler uniform sigmas and a shift for the image's size."""
        return flow_scheduler.stock_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift, fixed or for the image's size."""
        return flow_scheduler.uniform_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def student_scheduler(self, kind: StudentKind) -> Any:
        """A FlowMatchEulerDiscreteScheduler that takes `sigmas=` as they stand."""
        return flow_scheduler.exact_scheduler(self.scheduler_config, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance."""
        return {"sigmas": list(grid.times[:-1])} | self.unguided
