import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpdmd.evaluate import intervals
from dpdmd.evaluate.intervals import mean_estimate, ratio_estimate, t_estimate


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    estimate = mean_estimate(values.tolist())
    error = float(values.std() / len(values) ** 0.5)
    assert estimate.value == pytest.approx(float(values.mean()), abs=1e-12)
    # 4000 resamples place a 2.5 % quantile to about 4 % of the standard error.
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.15 * error)
    assert estimate.n == 400


def test_ratio_resamples_pairs():
    reference = np.random.default_rng(0).uniform(0.1, 1, 50)
    estimate = ratio_estimate((0.7 * reference).tolist(), reference.tolist())
    # An exact 70 % on every prompt is 70 % whichever prompts are drawn; unpaired resampling would spread.
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.7, 0.7, 0.7))


def test_ratio_agrees_with_a_naive_numpy_bootstrap():
    rng = np.random.default_rng(3)
    reference = rng.uniform(0.2, 1, 60)
    values = reference * rng.uniform(0.4, 0.9, 60)
    drawn = rng.integers(0, 60, (20000, 60))
    expected = np.quantile(values[drawn].sum(1) / reference[drawn].sum(1), [0.025, 0.975])
    estimate = ratio_estimate(values.tolist(), reference.tolist())
    assert estimate.interval == pytest.approx(expected.tolist(), abs=0.004)


def test_resamples_without_a_denominator_are_left_out():
    # Of two prompts one resample in four draws the second twice, 0 / 0; the others are 1 / 2 and 2 / 4.
    estimate = ratio_estimate([0.1, 0.0], [0.2, 0.0])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_two_prompts_is_their_range():
    """The mean of a resample is a, (a + b) / 2 or b with probabilities 1/4, 1/2, 1/4."""
    assert mean_estimate([0.2, 0.6]).interval == pytest.approx([0.2, 0.6])


def test_many_prompts_are_resampled_in_parts_and_all_the_same(monkeypatch):
    values = np.random.default_rng(5).normal(size=300).tolist()
    at_once = mean_estimate(values)
    monkeypatch.setattr(intervals, "MOST_DRAWN", 300 * 7)
    assert mean_estimate(values) == at_once


def test_same_input_same_interval():
    assert mean_estimate([0.1, 0.4, 0.3]) == mean_estimate([0.1, 0.4, 0.3])


def test_one_prompt_has_no_interval():
    estimate = mean_estimate([0.3])
    assert estimate.value == 0.3 and estimate.interval is None


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="one pair of numbers per prompt"):
        mean_estimate([])
    with pytest.raises(ValueError, match="must be finite"):
        mean_estimate([0.1, float("nan")])
    with pytest.raises(ValueError, match="share of it is undefined"):
        ratio_estimate([0.1, 0.2], [0.0, 0.0])


@pytest.mark.parametrize("degrees", [1, 2])
def test_students_quantile_has_its_closed_form(degrees):
    """Of 1 degree of freedom tan(pi (p - 1/2)), the Cauchy quantile; of 2 degrees (2p - 1) sqrt(2 / (4p (1 - p)))."""
    p = 0.975
    expected = {1: math.tan(math.pi * (p - 0.5)), 2: (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))}
    values = [0.3, 0.7, 0.4][: degrees + 1]
    estimate = t_estimate(values)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert (estimate.high - estimate.value) / error == pytest.approx(expected[degrees], rel=1e-10)
    assert (estimate.value - estimate.low) / error == pytest.approx(expected[degrees], rel=1e-10)


def test_seeds_that_agree_have_an_interval_of_no_width():
    estimate = t_estimate([0.5, 0.5, 0.5])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_interval_over_seeds_is_students():
    values = [0.55, 0.86, 0.61, 0.7, 0.63]
    estimate = t_estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(values)), 5)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert t_estimate([0.3]).interval is None
    with pytest.raises(ValueError, match="at least one"):
        t_estimate([])
