"""The adapter contract: everything that differs between model families, and nothing else.

An adapter owns sign, time scale, packing and folding of what its networks are fed and return. Beyond it there are
only `x_t` (B, C, H, W) latents, `t` in [0, 1], `Condition` and `Prediction`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.discriminator import Features, block_outputs
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import GuidanceRule
from dpdmd.method.paths import Path, Prediction
from dpdmd.method.roles import Role, Roles
from dpdmd.method.rollout import StudentKind

LatentShape = tuple[int, int, int]


class ModelAdapter(Protocol):
    """One family of text-to-image models, loaded from one diffusers pipeline folder or hub id.

    Making one reads JSON only; a part is loaded when it is first needed: text encoders by `encode`, the autoencoder by
    `decode`, the denoising network by `load_network`.

    pipeline_class: the stock pipeline, which samples an export.
    network_class, network_name: class and component name ("transformer", "unet") of the denoising network.
    vae_class, vae_config: class and configuration of the autoencoder.
    guidance_scale, num_inference_steps: how the teacher is sampled unless told otherwise.
    guidance_rule: how conditional and unconditional predictions are combined.
    embedded_guidance: what a guidance-distilled network is fed by default; None for a network that takes nothing.
    texts: the stock pipeline's text part. vae: the autoencoder, on the CPU until it is moved.
    token_limits: per tokenizer, the most tokens its encoder is given, a family's template included; None: what the
        tokenizer says.
    lora_targets: module names that a LoRA is put on. block_lists: the network's attributes that hold its blocks.
    feature_lists: those of its blocks, or lists of blocks, that compute with the picture, in the order of the call.
    vae_factor: pixels per latent pixel and side.
    """

    source: str
    pipeline_class: type
    network_class: type
    network_name: str
    vae_class: type
    vae_config: dict[str, Any]
    path: Path
    prediction_space: str
    guidance_scale: float
    num_inference_steps: int
    guidance_rule: GuidanceRule
    embedded_guidance: float | None
    texts: Any
    vae: nn.Module
    token_limits: tuple[tuple[str, int | None], ...]
    lora_targets: tuple[str, ...]
    block_lists: tuple[str, ...]
    feature_lists: tuple[str, ...]
    vae_factor: int

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of the latents of one image; default: the model's own size. ValueError if indivisible."""

    def load_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh copy of the pretrained denoising network, ready for `predict`."""

    def encode(self, prompts: list[str]) -> Condition:
        """Prompts to conditioning on the CPU, exactly as the stock pipeline; "" is the unconditional one."""

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros of the shapes that the longest prompts are encoded to, all tokens present: for counting memory."""

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """What `network` believes of x_t (B, C, H, W) at t (B,), in fp32."""

    def picture_tokens(self, output: Any, x_t: Tensor) -> Tensor:
        """The picture's part of what one of `feature_lists` returned at x_t (B, C, H, W): (B, N, D), N places of it."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, 8H, 8W or so) in [-1, 1], not clamped; latents receive gradient."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to their most likely latents, as `decode` takes them."""

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The grid that the stock pipeline takes by default for this many steps at this size."""

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The grid in which every call counts: uniform in the model's own time, then its shift."""

    def student_scheduler(self, kind: StudentKind) -> Any:
        """The stock scheduler that takes a student's steps exactly as it was trained to take them."""

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """Arguments of the stock pipeline with `student_scheduler` that sample a student along `grid`, unguided."""


def denoiser(adapter: ModelAdapter, roles: Roles, role: Role, embedded_guidance: float | None = None) -> Denoiser:
    """The denoiser of one role: its network, entered through `roles.use`, behind the family's adapter."""

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with roles.use(role) as network:
            return adapter.predict(network, x_t, t, cond, embedded_guidance)

    return denoise


def decoder(adapter: ModelAdapter, *, in_bf16: bool = False) -> Callable[[Tensor], Tensor]:
    """`adapter.decode` on the device of the latents, to fp32 images: the autoencoder is moved there and stays."""

    def decode(latents: Tensor) -> Tensor:
        adapter.vae.to(latents.device)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=in_bf16):
            return adapter.decode(latents).float()

    return decode


def empty_network(adapter: ModelAdapter) -> nn.Module:
    """The denoising network on the meta device, from its configuration."""
    with torch.device("meta"):
        return adapter.network_class.from_config(
            adapter.network_class.load_config(adapter.source, subfolder=adapter.network_name)
        )


def feature_blocks(adapter: ModelAdapter, network: nn.Module) -> list[nn.Module]:
    """The blocks of a network that compute with the picture, in the order of the call."""
    parts = (getattr(network, name) for name in adapter.feature_lists)
    return [block for part in parts for block in (part if isinstance(part, nn.ModuleList) else [part])]


def feature_reader(
    adapter: ModelAdapter,
    roles: Roles,
    role: Role,
    indices: tuple[int, ...],
    embedded_guidance: float | None = None,
    *,
    whole_calls: bool = False,
) -> Features:
    """What some of a role's `feature_blocks` make of x_t.

    The network is called without what is wrapped around it for several processes: no update of it follows.
    whole_calls: do not leave it behind the last of the blocks where no graph is recorded.
    """
    chosen = feature_blocks(adapter, roles.modules[role])

    def read(x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        with roles.use(role):
            outputs = block_outputs(
                lambda: adapter.predict(roles.modules[role], x_t, t, cond, embedded_guidance),
                [chosen[i] for i in indices],
                stop=not (whole_calls or torch.is_grad_enabled()),
            )
        return [adapter.picture_tokens(output, x_t) for output in outputs]

    return read


def network_denoiser(adapter: ModelAdapter, network: nn.Module, embedded_guidance: float | None = None) -> Denoiser:
    """The denoiser of a single network, for sampling."""

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.no_grad():
            return adapter.predict(network, x_t, t, cond, embedded_guidance)

    return denoise
