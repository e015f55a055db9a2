"""Intervals: by bootstrap over prompts (had other prompts been drawn), by Student's t over training seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` prompts or seeds and its interval; without an interval (None) when n < 2."""

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


def t_estimate(values: Sequence[float]) -> Estimate:
    """Mean over training seeds with the 95 % interval of Student's t.

    values: one figure per seed, taken for normally distributed. Raises ValueError when there is none.
    """
    n = len(values)
    if not n:
        raise ValueError("need at least one figure")
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, None, n)
    half = t_quantile(n - 1) * deviation(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of at least two values, with n - 1 in the denominator."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(degrees: int) -> float:
    """The t with P(|T| <= t) = .95 for Student's T with `degrees` >= 1 degrees of freedom.

    By bisection over a = atan(t / sqrt(degrees)), for which P is a finite sum (Abramowitz and Stegun, 26.7.3, 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_probability(angle, degrees) < LEVEL else (low, angle)
    return math.sqrt(degrees) * math.tan(high)


def _t_probability(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle))."""
    is_odd, term, total = degrees % 2, 1.0, 0.0
    for k in range(is_odd, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total


def _resample_counts(n: int, seed: int) -> Tensor:
    """How often each of n prompts is drawn in each resample, (NUM_RESAMPLES, n) fp64."""
    drawn = torch.randint(0, n, (NUM_RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(NUM_RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(NUM_RESAMPLES, n, dtype=torch.float64)
    )
