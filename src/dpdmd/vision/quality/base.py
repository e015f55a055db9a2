"""What a quality scorer is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dpdmd.vision.weights import Weights


@dataclass(frozen=True)
class QualityScorer:
    """`score` maps images (B, 3, H, W) in [-1, 1] and their B prompts to (B,) fp32 on the CPU; NaN where the network
    gave no score. Higher is better, for all of them.

    name: the figure's. version: changes when the same weights come to give other scores.
    """

    name: str
    score: Callable[[Tensor, list[str]], Tensor]
    weights: Weights
    version: int = 1
