"""Classifier-free guidance (arXiv 2207.12598), everywhere or inside a noise interval (arXiv 2404.07724)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.denoiser import Condition, Denoiser, concatenate
from dpdmd.paths import Prediction, per_sample


@dataclass(frozen=True)
class Guidance:
    """`scale` 1 = off; applied where low <= t <= high of `interval`, off outside of it."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if not self.scale >= 1:
            raise ValueError(f"guidance_scale must be >= 1 (1 = off), got {self.scale}")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval must be [low, high] with 0 <= low < high <= 1, got {self.interval}")


def guided(
    denoise: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, guidance: Guidance
) -> Prediction:
    """uncond + s (cond - uncond), in x0 and eps alike: both are linear in what the network returns.

    x_t: (B, C, H, W); t: (B,); cond, uncond: B prompts, `uncond` the model's true empty prompt. Samples whose t lies
    outside the interval are not guided and cost one forward instead of two.
    """
    low, high = guidance.interval
    inside = (t >= low) & (t <= high)
    if guidance.scale == 1 or not bool(inside.any()):
        return denoise(x_t, t, cond)
    rows = inside.nonzero().squeeze(1)
    both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]]), concatenate([cond, uncond[rows]]))
    batch_size = len(x_t)
    scale = per_sample(torch.where(inside, guidance.scale, 1.0), x_t)

    def combine(value: Tensor) -> Tensor:
        conditional = value[:batch_size]
        unconditional = conditional.index_copy(0, rows, value[batch_size:])
        return unconditional + scale * (conditional - unconditional)

    return Prediction(combine(both.x0), combine(both.eps))
