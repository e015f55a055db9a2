"""Noise paths: x_t = alpha(t) x0 + sigma(t) eps, t in [0, 1], 0 = data, 1 = noise.

Two coordinates of the same networks, one interface. After an adapter has turned a network's output into a
`Prediction(x0, eps)`, nothing knows whether it came from a flow or from a noise-prediction model.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """View t (B,) as (B, 1, 1, ...) so that it multiplies `like` (B, ...) sample by sample.

    Raises ValueError unless t has exactly one value per sample: (B,) against (B, C, H, W) would otherwise broadcast
    along W and be silently wrong whenever B equals W.
    """
    if t.ndim != 1 or len(t) != len(like):
        raise ValueError(f"t must have shape ({len(like)},), one time per sample, got {tuple(t.shape)}")
    return t.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Prediction:
    """What a denoiser believes of x_t: `x0` clean and `eps` noise, both (B, C, H, W) fp32."""

    x0: Tensor
    eps: Tensor

    @property
    def velocity(self) -> Tensor:
        """d x_t / d t on a flow: eps - x0."""
        return self.eps - self.x0


class Path(Protocol):
    """alpha and sigma of t; both (B,) for t (B,)."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FlowPath:
    """Rectified flow (arXiv 2209.03003): alpha = 1 - t, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


@dataclass(frozen=True)
class VPPath:
    """Variance preserving: alpha = sqrt(abar), sigma = sqrt(1 - abar) on a discrete grid of T training timesteps.

    `alphas_cumprod` (T,); t = (timestep + 1) / T, so t = 0 is clean data (abar = 1) and t = 1 the noisiest timestep.
    Any other t means the nearest of these times, to alpha and sigma as to a network that is fed `index(t)` - 1.
    """

    alphas_cumprod: Tensor
    tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def index(self, t: Tensor) -> Tensor:
        """round(t T), int64 (B,): 0 for clean data, else the training timestep plus 1."""
        return (t * len(self.alphas_cumprod)).round().long()

    def _abar(self, t: Tensor) -> Tensor:
        if t.device not in self.tables:
            table = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.double()])
            self.tables[t.device] = table.to(t.device)
        return self.tables[t.device][self.index(t)]

    def alpha(self, t: Tensor) -> Tensor:
        return self._abar(t).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._abar(t)).sqrt().to(t.dtype)


def add_noise(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps; x0, eps (B, C, H, W), t (B,)."""
    return per_sample(path.alpha(t), x0) * x0 + per_sample(path.sigma(t), x0) * eps


def step(path: Path, prediction: Prediction, s: Tensor, noise: Tensor | None = None) -> Tensor:
    """Step to time s (B,): x_s = alpha(s) x0_hat + sigma(s) eps_hat, or with `noise` (B, C, H, W) in place of eps_hat.

    Deterministic, it is Euler's on a flow and DDIM's (arXiv 2010.02502, eq. 12 with eta 0) on a variance-preserving
    path. With fresh noise it is the step of a re-noising student (LCM, arXiv 2310.04378; DMD2, arXiv 2405.14867).
    """
    return add_noise(path, prediction.x0, prediction.eps if noise is None else noise, s)


def to_midpoint(
    path: Path, x_t: Tensor, now: Prediction, before: Prediction, *, t: Tensor, s: Tensor, t_before: Tensor
) -> Prediction:
    """The prediction for a step from t to s of second order: x0 extrapolated to the middle of the step.

        x0 = x0_now + (t - s) / (2 (t_before - t)) (x0_now - x0_before),  eps such that the pair still explains x_t

    `step` to s then integrates the flow with an x0 that is linear in t (the multistep idea of DPM-Solver++(2M), arXiv
    2211.01095, in t instead of the log signal-to-noise ratio, which is not finite at t = 1 of a flow).
    x_t: (B, C, H, W); times: (B,), t_before > t > s; predictions at t_before and t.
    """
    ratio = per_sample((t - s) / (2 * (t_before - t)), x_t)
    x0 = now.x0 + ratio * (now.x0 - before.x0)
    return Prediction(x0, (x_t - per_sample(path.alpha(t), x_t) * x0) / per_sample(path.sigma(t), x_t))


def from_velocity(x_t: Tensor, velocity: Tensor, t: Tensor) -> Prediction:
    """Flow network output to (x0, eps): x0 = x_t - t velocity, eps = x_t + (1 - t) velocity, in fp32."""
    x_t, velocity = x_t.float(), velocity.float()
    t = per_sample(t.float(), x_t)
    return Prediction(x0=x_t - t * velocity, eps=x_t + (1 - t) * velocity)


def from_eps(path: Path, x_t: Tensor, eps: Tensor, t: Tensor) -> Prediction:
    """Noise-prediction output to (x0, eps): x0 = (x_t - sigma eps) / alpha, in fp32."""
    x_t, eps = x_t.float(), eps.float()
    alpha, sigma = per_sample(path.alpha(t), x_t), per_sample(path.sigma(t), x_t)
    return Prediction(x0=(x_t - sigma * eps) / alpha, eps=eps)


def from_v(path: Path, x_t: Tensor, v: Tensor, t: Tensor) -> Prediction:
    """VP v-prediction, v = alpha eps - sigma x0 (arXiv 2202.00512), to (x0, eps) in fp32.

    x0 = alpha x_t - sigma v, eps = sigma x_t + alpha v.
    """
    x_t, v = x_t.float(), v.float()
    alpha, sigma = per_sample(path.alpha(t), x_t), per_sample(path.sigma(t), x_t)
    return Prediction(x0=alpha * x_t - sigma * v, eps=sigma * x_t + alpha * v)


def to_v(path: Path, prediction: Prediction, t: Tensor) -> Tensor:
    """v = alpha eps - sigma x0 (B, C, H, W), what a VP v network returns at t (B,); the inverse of `from_v`."""
    return add_noise(path, prediction.eps, -prediction.x0, t)


def secant(path: Path, z_0: Tensor, t_0: Tensor, z_k: Tensor, t_k: Tensor) -> Prediction:
    """The one (x0, eps) whose noisings at t_0 and at t_k are z_0 and z_k.

        eps = (alpha_k z_0 - alpha_0 z_k) / (alpha_k sigma_0 - alpha_0 sigma_k)
        x0  = (sigma_0 z_k - sigma_k z_0) / (alpha_k sigma_0 - alpha_0 sigma_k)

    A single deterministic step with it leads from z_0 exactly to z_k. On a flow its velocity is
    v* = (z_0 - z_k) / (sigma_0 - sigma_k), the mean teacher velocity over the segment (arXiv 2602.03139).

    z_0, z_k: (B, C, H, W); t_0, t_k: (B,) with t_0 > t_k, which the caller makes sure of: to look at times on a GPU
    would make the CPU wait.
    """
    z_0, z_k = z_0.float(), z_k.float()
    alpha_0, sigma_0 = per_sample(path.alpha(t_0), z_0), per_sample(path.sigma(t_0), z_0)
    alpha_k, sigma_k = per_sample(path.alpha(t_k), z_0), per_sample(path.sigma(t_k), z_0)
    determinant = alpha_k * sigma_0 - alpha_0 * sigma_k
    return Prediction(
        x0=(sigma_0 * z_k - sigma_k * z_0) / determinant, eps=(alpha_k * z_0 - alpha_0 * z_k) / determinant
    )
