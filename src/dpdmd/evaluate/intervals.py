"""Bootstrap intervals over prompts: how far a figure would move had other prompts been drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` prompts and its percentile interval; without an interval (None) when n < 2."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> list[float] | None:
        """[low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean over prompts with a percentile bootstrap interval (95 %, fixed seed).

    values: one figure per prompt. Raises ValueError when empty or not finite.
    """
    return ratio_estimate(values, [1.0] * len(values), seed=seed)


def ratio_estimate(numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0) -> Estimate:
    """sum(numerator) / sum(denominator) with an interval, prompts resampled as pairs.

    A ratio of means, not a mean of ratios: a prompt with hardly any diversity of its own cannot dominate.
    Raises ValueError when empty, of different lengths, not finite, or when a sum in the denominator is not positive.
    """
    if not len(numerator) or len(numerator) != len(denominator):
        raise ValueError(f"need one pair of figures per prompt, got {len(numerator)} and {len(denominator)}")
    pairs = torch.tensor([list(numerator), list(denominator)], dtype=torch.float64)
    if not torch.isfinite(pairs).all():
        raise ValueError("every prompt's figure must be finite")
    if float(pairs[1].sum()) <= 0:
        raise ValueError(f"the reference sums to {float(pairs[1].sum()):g}, a share of it is undefined")
    value = float(pairs[0].sum() / pairs[1].sum())
    n = pairs.shape[1]
    if n < 2:
        return Estimate(value, None, None, n)
    sums = pairs @ _resample_counts(n, seed).T
    ratios = (sums[0] / sums[1])[sums[1] > 0]
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(ratios, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, n)


def _resample_counts(n: int, seed: int) -> Tensor:
    """How often each of n prompts is drawn in each resample, (NUM_RESAMPLES, n) fp64."""
    drawn = torch.randint(0, n, (NUM_RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(NUM_RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(NUM_RESAMPLES, n, dtype=torch.float64)
    )
