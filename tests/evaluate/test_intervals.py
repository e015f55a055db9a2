import numpy as np
import pytest
import torch
from scipy import stats

from dpdmd.evaluate.intervals import deviation, mean_estimate, ratio_estimate, t_estimate, t_quantile


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


def test_same_input_same_interval():
    assert mean_estimate([0.1, 0.4, 0.3]) == mean_estimate([0.1, 0.4, 0.3])


def test_one_prompt_has_no_interval():
    estimate = mean_estimate([0.3])
    assert estimate.value == 0.3 and estimate.interval is None


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="one pair of figures per prompt"):
        mean_estimate([])
    with pytest.raises(ValueError, match="must be finite"):
        mean_estimate([0.1, float("nan")])
    with pytest.raises(ValueError, match="share of it is undefined"):
        ratio_estimate([0.1, 0.2], [0.0, 0.0])


@pytest.mark.parametrize("degrees", [*range(1, 12), 30, 31, 200])
def test_students_quantile_is_scipys(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-10)


def test_interval_over_seeds_is_students():
    values = [0.55, 0.86, 0.61, 0.7, 0.63]
    estimate = t_estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(values)), 5)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert t_estimate([0.3]).interval is None
    with pytest.raises(ValueError, match="at least one"):
        t_estimate([])
