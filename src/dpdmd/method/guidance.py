"""Classifier-free guidance (arXiv 2207.12598), everywhere or inside a noise interval (arXiv 2404.07724)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser, concatenate
from dpdmd.method.paths import Prediction, per_sample

# (x_t, t, conditional, unconditional, scale (B, 1, 1, 1)) -> guided; a scale of 1 must give the conditional one back.
GuidanceRule = Callable[[Tensor, Tensor, Prediction, Prediction, Tensor], Prediction]


def linear_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: Tensor) -> Prediction:
    """uncond + s (cond - uncond), in x0 and eps alike: both are linear in what the network returns."""
    return Prediction(uncond.x0 + scale * (cond.x0 - uncond.x0), uncond.eps + scale * (cond.eps - uncond.eps))


@dataclass(frozen=True)
class Guidance:
    """`scale` 1 = off; applied where low <= t <= high of `interval`, off outside of it; `rule` is the family's."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rule: GuidanceRule = linear_rule

    def __post_init__(self):
        if not self.scale >= 1:
            raise ValueError(f"guidance_scale must be >= 1 (1 = off), got {self.scale}")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval must be [low, high] with 0 <= low < high <= 1, got {self.interval}")

    @property
    def num_forwards(self) -> int:
        """Network calls of one guided prediction, inside the interval."""
        return 2 if self.scale > 1 else 1


def guided(
    denoise: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, guidance: Guidance
) -> Prediction:
    """Conditional and unconditional predictions combined by the family's rule; see `guided_pair`."""
    return guided_pair(denoise, x_t, t, cond, uncond, guidance)[1]


def guided_pair(
    denoise: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, guidance: Guidance
) -> tuple[Prediction, Prediction]:
    """(conditional prediction, guided prediction).

    x_t: (B, C, H, W); t: (B,); cond, uncond: B prompts, `uncond` the model's true empty prompt. Samples whose t lies
    outside the interval are not guided and cost one forward instead of two.
    """
    low, high = guidance.interval
    inside = (t >= low) & (t <= high)
    if guidance.scale == 1 or not bool(inside.any()):
        conditional = denoise(x_t, t, cond)
        return conditional, conditional
    rows = inside.nonzero().squeeze(1)
    both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]]), concatenate([cond, uncond[rows]]))
    conditional = Prediction(both.x0[: len(x_t)], both.eps[: len(x_t)])
    unconditional = Prediction(
        conditional.x0.index_copy(0, rows, both.x0[len(x_t) :]),
        conditional.eps.index_copy(0, rows, both.eps[len(x_t) :]),
    )
    scale = per_sample(torch.where(inside, guidance.scale, 1.0), x_t)
    return conditional, guidance.rule(x_t, t, conditional, unconditional, scale)
