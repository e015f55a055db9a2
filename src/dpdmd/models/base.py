"""The adapter contract: everything that differs between model families, and nothing else.

An adapter owns sign, time scale, packing and folding of what its networks are fed and return. Beyond it there are
only `x_t` (B, C, H, W) latents, `t` in [0, 1], `Condition` and `Prediction`.
"""

from pathlib import Path as FilePath
from typing import Protocol

import torch
from torch import Tensor, nn

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid
from dpdmd.paths import Path, Prediction
from dpdmd.roles import Role, Roles


class ModelAdapter(Protocol):
    """One family of text-to-image models, loaded from one diffusers pipeline folder or hub id."""

    source: str
    path: Path
    prediction_space: str
    guidance_scale: float
    num_inference_steps: int

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of one image; default: the model's own size. ValueError if indivisible."""

    def load_network(self) -> nn.Module:
        """A fresh fp32 copy of the pretrained denoising network, ready for `predict`."""

    def encode(self, prompts: list[str]) -> Condition:
        """Prompts to conditioning on the CPU, exactly as the stock pipeline; "" is the unconditional one."""

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """What `network` believes of x_t (B, C, H, W) at t (B,), in fp32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, 8H, 8W or so) in [-1, 1], not clamped."""

    def stock_grid(self, num_steps: int) -> Grid:
        """The grid that the stock pipeline's scheduler takes by default for this many steps."""

    def uniform_grid(self, num_steps: int) -> Grid:
        """The grid in which every call counts: uniform in the model's own time, then its shift."""

    def export(self, network: nn.Module, grid: Grid, out: FilePath) -> str:
        """Write a stock pipeline folder with these weights and this grid; returns the snippet that samples it."""


def denoiser(adapter: ModelAdapter, roles: Roles, role: Role) -> Denoiser:
    """The denoiser of one role: its network, entered through `roles.use`, behind the family's adapter."""

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with roles.use(role) as network:
            return adapter.predict(network, x_t, t, cond)

    return denoise


def network_denoiser(adapter: ModelAdapter, network: nn.Module) -> Denoiser:
    """The denoiser of a single network, for sampling."""

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.no_grad():
            return adapter.predict(network, x_t, t, cond)

    return denoise
