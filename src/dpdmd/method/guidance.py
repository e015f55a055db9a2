"""Classifier-free guidance (arXiv 2207.12598)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser, concatenate
from dpdmd.method.paths import Prediction

LARGEST = 1000.0  # fp32 overflows far beyond what any model is drawn with
# (x_t, t, conditional, unconditional, scale) -> guided prediction. A scale of 1 must return the conditional one.
GuidanceRule = Callable[[Tensor, Tensor, Prediction, Prediction, float], Prediction]


def linear_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: float) -> Prediction:
    """uncond + s (cond - uncond), in x0 and eps alike: both are linear in the network's output."""
    return Prediction(uncond.x0 + scale * (cond.x0 - uncond.x0), uncond.eps + scale * (cond.eps - uncond.eps))


@dataclass(frozen=True)
class Guidance:
    """Guidance of strength `scale` (1 = off), combined by the model family's `rule`.

    Raises ValueError for a scale below 1.
    """

    scale: float = 1.0
    rule: GuidanceRule = linear_rule

    def __post_init__(self):
        if not 1 <= self.scale <= LARGEST:
            raise ValueError(f"guidance_scale must be >= 1 (1 = off) and at most {LARGEST:g}, got {self.scale}")

    @property
    def num_forwards(self) -> int:
        """Network calls of one guided prediction: the conditional and, unless guidance is off, the unconditional."""
        return 2 if self.scale > 1 else 1


def guided(
    denoise: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, guidance: Guidance
) -> Prediction:
    """The guided prediction at x_t; both halves are computed in one call of twice the batch.

    x_t: (B, C, H, W); t: (B,); cond, uncond: B prompts, where `uncond` is the model's own empty prompt, not zeros.
    """
    if guidance.scale == 1:
        return denoise(x_t, t, cond)
    both = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), concatenate([cond, uncond]))
    conditional, unconditional = map(Prediction, both.x0.chunk(2), both.eps.chunk(2))
    return guidance.rule(x_t, t, conditional, unconditional, guidance.scale)
