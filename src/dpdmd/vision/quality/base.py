"""The interface of a quality scorer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dpdmd.vision.weights import Weights


@dataclass(frozen=True)
class QualityScorer:
    """A loaded quality network; higher scores are better for all of them.

    name: the name of the metric.
    score: maps images (B, 3, H, W) in [-1, 1] and their B prompts to scores (B,), fp32 on the CPU; NaN if the network
        gave no score.
    weights: the network's weights, for the record and as a cache key.
    version: must be raised when the code changes so that the same weights give other scores.
    """

    name: str
    score: Callable[[Tensor, list[str]], Tensor]
    weights: Weights
    version: int = 1
