import numpy as np
import pytest
from scipy import stats

from dpdmd.compare.arms import Arm, Run
from dpdmd.compare.summary import summarise, summarise_arms, summarise_runs, table


@pytest.mark.parametrize("number", [2, 3, 5, 12])
def test_intervals_over_seeds_are_those_of_scipy(number):
    values = np.random.default_rng(number).normal(0.7, 0.1, number)
    summary = summarise(values.tolist(), [0.1, 0.9])
    low, high = stats.t.interval(0.95, number - 1, loc=values.mean(), scale=stats.sem(values))
    assert (summary["low"], summary["high"]) == pytest.approx((low, high), rel=1e-9)
    assert summary["mean"] == pytest.approx(values.mean()) and summary["deviation"] == pytest.approx(values.std(ddof=1))
    assert summary["interval"] == "training seeds" and summary["values"] == values.tolist()


def test_one_seed_has_the_interval_over_prompts_and_is_marked_so():
    assert summarise([0.5], [0.4, 0.6]) == {
        "mean": 0.5, "low": 0.4, "high": 0.6, "interval": "prompts", "values": [0.5],
    }  # fmt: skip
    assert summarise([0.5]) == {"mean": 0.5, "values": [0.5]}


def test_runs_without_a_metric_keep_their_place_and_are_left_out():
    summary = summarise([0.2, None, 0.4])
    assert summary["mean"] == pytest.approx(0.3) and summary["values"] == [0.2, None, 0.4]
    assert summary["high"] - summary["mean"] == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert summarise([None, None]) is None


def test_of_two_runs_one_failed_the_other_has_its_interval_over_prompts():
    rows = [{"failed": 1.0}, {"failed": 0.0, "diversity": 0.3, "intervals": {"diversity": [0.2, 0.4]}}]
    summaries = summarise_runs(rows)
    assert summaries["diversity"] == {
        "mean": 0.3, "low": 0.2, "high": 0.4, "interval": "prompts", "values": [None, 0.3],
    }  # fmt: skip
    assert summaries["failed"]["mean"] == 0.5


def test_arms_are_summed_up_in_their_order(tmp_path):
    runs = [Run(Arm(name), tmp_path, seed) for seed in (0, 1) for name in ("b", "a")]
    arms = summarise_arms(runs, [{"diversity": value} for value in (1.0, 2.0, 3.0, 6.0)])
    assert {name: (arm["diversity"]["mean"], arm["diversity"]["values"]) for name, arm in arms.items()} == {
        "b": (2.0, [1.0, 3.0]),
        "a": (4.0, [2.0, 6.0]),
    }
    assert list(arms) == ["b", "a"]


def test_the_table_shows_both_kinds_of_intervals():
    seeds, prompts = summarise([0.5, 0.5 + 1e-9]), summarise([1.0], [0.9, 1.1])
    lines = table(
        {"a": {"diversity": seeds, "seconds": summarise([12.2, 12.2])}, "b": {"diversity": prompts}}, ("diversity",)
    ).splitlines()
    assert lines[0] == "| arm | diversity | seconds | MiB |"
    assert lines[2] == "| a | 0.500 ± 0.000 | 12 | - |"
    assert lines[3] == "| b | 1.000 [0.900, 1.100] | - | - |"
