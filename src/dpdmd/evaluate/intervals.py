"""95 % intervals: a bootstrap over prompts (with other prompts), Student's t over training seeds (with other seeds)."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NUM_RESAMPLES = 4000
LEVEL = 0.95
SEED = 0
# Numbers that are drawn at once: some tens of MB, whatever the number of prompts.
MOST_DRAWN = 10**6


@dataclass(frozen=True)
class Estimate:
    """A value from `n` prompts or seeds with its interval; `low` and `high` are None when n < 2."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> list[float] | None:
        """[low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean over prompts with a 95 % percentile bootstrap interval.

    values: one number per prompt. Raises ValueError when there is none or one is not finite.
    """
    return ratio_estimate(values, [1.0] * len(values))


def ratio_estimate(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """sum(numerator) / sum(denominator) over prompts with a 95 % percentile bootstrap interval.

    Prompts are resampled as pairs, with a fixed seed. A ratio of sums and not a mean of ratios, so that a prompt whose
    denominator is nearly zero cannot dominate. Resamples whose denominator is zero are left out of the interval.
    Raises ValueError when there is no prompt, the lengths differ, a number is not finite, or the denominators sum to
    zero or less.
    """
    if not len(numerator) or len(numerator) != len(denominator):
        raise ValueError(f"need one pair of numbers per prompt, got {len(numerator)} and {len(denominator)}")
    pairs = np.array([numerator, denominator], dtype=np.float64)
    if not np.isfinite(pairs).all():
        raise ValueError("the number of every prompt must be finite")
    total, reference = pairs.sum(axis=1)
    if reference <= 0:
        raise ValueError(f"the reference sums to {reference:g}: a share of it is undefined")
    value, n = float(total / reference), pairs.shape[1]
    if n < 2:
        return Estimate(value, None, None, n)
    with warnings.catch_warnings():
        # Of resamples without a denominator, which are left out below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        ratios = stats.bootstrap(
            pairs,
            _ratio_of_sums,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, MOST_DRAWN // n),
            paired=True,
            vectorized=True,
            method="percentile",
            random_state=np.random.default_rng(SEED),  # pyright: ignore[reportCallIssue]  # `rng` since scipy 1.15
        ).bootstrap_distribution
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def t_estimate(values: Sequence[float]) -> Estimate:
    """Mean over training seeds with the 95 % interval of Student's t.

        mean ± t_{n-1}(0.975) s / sqrt(n),   s the standard deviation with n - 1 in the denominator

    values: one number per seed, assumed to be normally distributed. Raises ValueError when there is none.
    """
    n = len(values)
    if not n:
        raise ValueError("need at least one number")
    mean = statistics.fmean(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def _ratio_of_sums(numerator: np.ndarray, denominator: np.ndarray, axis: int) -> np.ndarray:
    """The ratio of each resample; NaN where the denominator is not positive."""
    total, reference = numerator.sum(axis=axis), denominator.sum(axis=axis)
    return np.divide(total, reference, out=np.full_like(total, np.nan), where=reference > 0)
