"""The common base of all adapters of stock diffusers pipelines; each family overrides what it does differently."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import FlowPath, Path
from dpdmd.method.rollout import StudentKind
from dpdmd.models import flow_scheduler, parts
from dpdmd.models.base import CALLBACK, RENEW_NOISE, LatentShape, ModelAdapter
from dpdmd.models.saved_scheduler import flow_config
from dpdmd.models.sizes import SIDE
from dpdmd.models.stored import blank_network
from dpdmd.models.student_file import BaseLora, exported_student
from dpdmd.store.errors import InputError


class StockAdapter:
    """A `models.base.ModelAdapter` except for `encode`, `blank_condition` and `predict`.

    By default, the model is a flow with plain guidance. A family writes these three methods, and sets `pipeline_class`,
    `network_class`, `vae_class`, `guidance_scale`, `num_inference_steps`, `token_limits`, `lora_targets` and
    `block_lists`. It sets `feature_lists` if some of its blocks do not process image tokens.

    network_config, vae_config, scheduler_config: the JSON configurations saved with the components.
    unguided: arguments of the stock pipeline that turn its classifier-free guidance off.
    older_names: what checkpoints call the network's class beside its name.
    exported_options: what the model_index.json of an exported student says otherwise than its base's.
    pipeline_gives_sigmas: whether the stock pipeline gives its scheduler the sigmas 1, 1 - 1/N, ..., 1/N; otherwise
        the scheduler spaces them by itself.
    """

    pipeline_class: type
    network_class: type
    vae_class: type
    block_lists: tuple[str, ...]
    network_name = "transformer"
    path: Path = FlowPath()
    prediction_space = "velocity"
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance: float | None = None
    unguided: ClassVar[dict[str, float]] = {"guidance_scale": 1.0}
    callback: str | None = CALLBACK
    older_names: tuple[str, ...] = ()
    exported_options: ClassVar[dict[str, Any]] = {}
    pipeline_gives_sigmas = True
    loras: tuple[BaseLora, ...] = ()

    def __init__(self, source: str):
        """Read the configurations. Raises ValueError if one is missing, or if the family does not support it."""
        self.source = source
        self.network_config = parts.load_config(self.network_class, source, self.network_name, self.older_names)
        self.vae_config = parts.load_config(self.vae_class, source, "vae")
        self.scheduler_config, self.replaced_solver = self.scheduler_from(parts.load_scheduler_config(source))
        parts.require_texts(source)

    def scheduler_from(self, config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """The scheduler's configuration that is used, and the name of the solver that it replaces (None: none).

        config: as it is saved with the pipeline. Raises ValueError for what this family cannot follow.
        """
        is_student = exported_student(self.source) is not None
        return flow_config(config, self.source, pipeline_gives_sigmas=self.pipeline_gives_sigmas, is_student=is_student)

    @property
    def notes(self) -> list[str]:
        """What a teacher does otherwise than the saved pipeline, in words."""
        if self.replaced_solver is None:
            return []
        return [f"the teacher takes Euler steps with the shift of its saved scheduler, a {self.replaced_solver}"]

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with only its tokenizers and text encoders."""
        return parts.load_text_pipeline(self.pipeline_class, self.source, self.network_name, "vae")

    def encode(self, prompts: list[str]) -> Condition:
        """A family's own."""
        raise NotImplementedError

    def encode_negative(self, prompts: list[str]) -> Condition:
        """As any prompt, in most families."""
        return self.encode(prompts)

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether the stock pipeline's call has a negative prompt."""
        return self._takes("negative_prompt")

    def _takes(self, argument: str) -> bool:
        """Whether the stock pipeline's call has an argument of this name."""
        return argument in inspect.signature(self.pipeline_class.__call__).parameters

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, frozen: an nn.Module with what diffusers adds to it."""
        return parts.load_part(self.vae_class, self.source, "vae")

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """From the headers of its files, which are downloaded if needed."""
        return parts.stored_dtype(self.source, self.network_name)

    @property
    def feature_lists(self) -> tuple[str, ...]:
        """By default, all of `block_lists`."""
        return self.block_lists

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of the latents of an image in pixels; default: the network's sample_size."""
        config = self.network_config
        size = self.latent_size(height, width, default=config["sample_size"], patch=config.get("patch_size", 1))
        return config["in_channels"], *size

    def latent_size(
        self, height: int | None, width: int | None, *, default: int | Sequence[int], patch: int
    ) -> tuple[int, int]:
        """Height and width of the latents of an image.

        height, width: of the image, in pixels; None: `default` latent pixels, one or two numbers. patch: latent
        pixels per token and side. Raises ValueError unless both are divisible by vae_factor * patch, and up to SIDE.
        """
        factor = self.vae_factor
        rows, columns = (default, default) if isinstance(default, int) else default
        own = "" if height or width else f" by its {self.network_name} and vae configurations"
        height, width = height or rows * factor, width or columns * factor
        for name, value in (("height", height), ("width", width)):
            if not 0 < value <= SIDE:
                raise InputError(f"{self.source}: {name}{own} must be up to {SIDE} pixels, got {value}")
            if value % (factor * patch):
                below = value - value % (factor * patch)
                nearest = " and ".join(str(side) for side in (below, below + factor * patch) if side)
                raise InputError(
                    f"{name} must be divisible by {factor * patch} for {self.source}, got {value} "
                    f"(of {height} x {width}, height x width); nearest: {nearest}"
                )
        return height // factor, width // factor

    def load_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Load the pretrained network and merge its LoRAs."""
        network = parts.load_network(self.network_class, self.source, self.network_name, dtype)
        if self.loras:
            from dpdmd.models.base_loras import merge_base_loras

            merge_base_loras(cast("ModelAdapter", self), network, self.loras)
        return self.prepared(network)

    def network_files(self) -> list[FilePath]:
        """The safetensors files with the network's weights."""
        return parts.network_files(self.source, self.network_name)

    def blank_network(self) -> nn.Module:
        """The network without its weights: parameters on the meta device, tables computed."""
        return self.prepared(
            blank_network(self.network_class, self.network_config, self.network_files(), self.source, self.network_name)
        )

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network with what a family changes in it; by default nothing."""
        return network

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The image tokens, which transformer blocks return after the prompt's tokens."""
        return output[-1] if isinstance(output, tuple) else output

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents / scaling_factor + shift_factor with the autoencoder."""
        config = self.vae.config
        latents = latents.to(self.vae.device) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.vae.decode(latents, return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """(mode - shift_factor) * scaling_factor, with the mode of the autoencoder's distribution."""
        config = self.vae.config
        latents = self.vae.encode(images.to(self.vae.device)).latent_dist.mode()
        return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The grid of a pipeline that gives its scheduler uniform sigmas and a shift that depends on the image size."""
        mu = self.dynamic_shift(num_steps, latent_shape or self.latent_shape())
        gives = self.pipeline_gives_sigmas
        return flow_scheduler.stock_grid(
            self.scheduler_config, num_steps, self.source, pipeline_gives_sigmas=gives, mu=mu
        )

    def uniform_grid(
        self, num_steps: int, latent_shape: LatentShape | None = None, *, shift: float | None = None
    ) -> Grid:
        """The uniform grid in the fp32 sigmas of the scheduler that a student with it is exported with."""
        shift = self.own_shift(num_steps, latent_shape) if shift is None else shift
        gives = self.pipeline_gives_sigmas
        scheduler = flow_scheduler.uniform_scheduler(
            self.scheduler_config, num_steps, shift, pipeline_gives_sigmas=gives
        )
        return flow_scheduler.drawn_grid(scheduler, num_steps, pipeline_gives_sigmas=gives)

    def student_scheduler(self, kind: StudentKind, grid: Grid, latent_shape: LatentShape | None = None) -> Any:
        """A FlowMatchEulerDiscreteScheduler that draws a uniform grid by itself, and other `sigmas=` unchanged."""
        return flow_scheduler.student_scheduler(
            self.scheduler_config,
            kind,
            grid,
            self.own_shift(grid.num_steps, latent_shape),
            pipeline_gives_sigmas=self.pipeline_gives_sigmas,
        )

    def sized_scheduler(self, kind: StudentKind, grids: Mapping[LatentShape, Grid]) -> Any:
        """`student_scheduler` if all grids are the same, else one whose shift follows the size as the base's does."""
        (shape, first), *others = grids.items()
        if all(flow_scheduler.same_grid(first, grid) for _, grid in others):
            return self.student_scheduler(kind, first, shape)
        shifted = [(self.dynamic_shift(grid.num_steps, shape), grid) for shape, grid in grids.items()]
        return flow_scheduler.sized_scheduler(
            self.scheduler_config, kind, shifted, pipeline_gives_sigmas=self.pipeline_gives_sigmas
        )

    def sized_grid(self, grids: Mapping[LatentShape, Grid], latent_shape: LatentShape) -> Grid:
        """A student's grid at a size: the trained one, else what its `sized_scheduler` draws."""
        if latent_shape in grids:
            return grids[latent_shape]
        scheduler, num_steps = self.sized_scheduler("ode", grids), next(iter(grids.values())).num_steps
        if not scheduler.config.get("use_dynamic_shifting"):
            return next(iter(grids.values()))
        mu = self.dynamic_shift(num_steps, latent_shape)
        return flow_scheduler.drawn_grid(scheduler, num_steps, pipeline_gives_sigmas=self.pipeline_gives_sigmas, mu=mu)

    def call_arguments(self, scheduler: Any, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The number of steps if the scheduler draws the grid by itself, else the grid's sigmas; no guidance.

        Raises ValueError for a grid that has to be given to a stock pipeline that takes none.
        """
        gives = self.pipeline_gives_sigmas
        if scheduler.config.use_dynamic_shifting or flow_scheduler.same_grid(
            flow_scheduler.drawn_grid(scheduler, grid.num_steps, pipeline_gives_sigmas=gives), grid
        ):
            return {"num_inference_steps": grid.num_steps} | self.unguided
        if not self._takes("sigmas"):
            name, times = self.pipeline_class.__name__, ", ".join(f"{time:.4g}" for time in grid.times)
            raise InputError(
                f"{self.source}: the call of a {name} of stock diffusers takes no sigmas, and its scheduler alone does "
                f'not draw the student\'s grid {times}; use student.grid = "uniform"'
            )
        return {"sigmas": list(grid.times[:-1])} | self.unguided

    def renewal_code(self, num_steps: int) -> str:
        """The scheduler's option of stochastic sampling is on in the step before the last, and off in all others."""
        return (
            f"def {RENEW_NOISE}(pipe, i, t, tensors):  # the step before the last adds fresh noise\n"
            f"    pipe.scheduler.register_to_config(stochastic_sampling=i == {num_steps - 3})\n"
            "    return {}\n"
        )

    def dynamic_shift(self, num_steps: int, latent_shape: LatentShape) -> float:
        """mu, which the stock pipeline gives a scheduler whose shift is dynamic: by default for the size alone."""
        return flow_scheduler.size_shift(self.scheduler_config, latent_shape)

    def own_shift(self, num_steps: int, latent_shape: LatentShape | None = None) -> float:
        """The factor of the model's own time shift for this number of steps and size (default: its own)."""
        mu = self.dynamic_shift(num_steps, latent_shape or self.latent_shape())
        return flow_scheduler.own_shift(self.scheduler_config, mu)

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """diffusers' own names, which ComfyUI knows for most transformers that it draws."""
        return {f"{self.network_name}.{name}": tensor for name, tensor in layers.items()}
