"""Bytes that an update sends, counted by hand; tests/models/test_sharding.py counts those of real processes."""

import re

import pytest

from dpdmd.planning.cost import NetworkSizes
from dpdmd.planning.traffic import Cluster, calls_per_micro_batch, describe_traffic, update_traffic
from dpdmd.recipe.resolve import resolve

SIZES = NetworkSizes(1000, 4000, 10)
TWO_BY_TWO = Cluster(2, 2, 400.0)
DMD = {"objective": {"name": "dmd"}, "student": {"num_steps": 3}}
# One rollout for the fake score and one for the update, DMD's two calls; each call with a graph is gathered once more.
GATHERED, REDUCED = (3 + 3 + 3) + (2 + 2 + 1) + 1, 1 + 2


def traffic(make_recipe, adapter, cluster=TWO_BY_TWO, lora=(), **train):
    lora = {"roles": list(lora), "rank": 2}
    plan = resolve(make_recipe(**DMD, lora=lora, train={"fake_updates": 2} | train), adapter)
    return update_traffic(plan, SIZES, cluster)


@pytest.mark.parametrize(
    ("shard", "within", "across"),
    [
        (False, 2 * 3 / 4 * 4000 * REDUCED, 2 * 3 / 4 * 4000 * REDUCED),
        (True, 3 / 4 * 4000 * (GATHERED + REDUCED), 3 / 4 * 4000 * (GATHERED + REDUCED)),
        ("machine", 1 / 2 * 4000 * (GATHERED + REDUCED), 2 * 1 / 2 * 4000 * REDUCED),
    ],
)
def test_bytes_within_and_between_two_machines_of_two(shard, within, across, make_recipe, adapter):
    found = traffic(make_recipe, adapter, shard=shard)
    assert (found.within, found.across) == pytest.approx((within, across))


def test_bf16_halves_what_is_gathered_and_accumulation_repeats_it(make_recipe, adapter):
    found = traffic(make_recipe, adapter, shard=True, precision="bf16", accumulation=3)
    # The first backward pass of the last micro-batch already sends what was accumulated: once more for the student.
    assert found.within == pytest.approx(3 / 4 * (3 * 2000 * GATHERED + 4000 * (REDUCED + 1)))


def test_adapters_are_all_that_is_reduced(make_recipe, adapter):
    found = traffic(make_recipe, adapter, lora=("student", "fake_score"), shard="machine")
    assert found.across == pytest.approx(2 * 1 / 2 * 40 * REDUCED)
    assert found.within == pytest.approx(1 / 2 * 4 * (1020 * GATHERED + 10 * REDUCED))


def test_one_machine_sends_nothing_to_others(make_recipe, adapter):
    for shard in (False, True):
        assert traffic(make_recipe, adapter, Cluster(1, 4, 400.0), shard=shard).across == 0


def test_the_anchor_is_called_in_the_micro_batches_that_have_anchored_samples(make_recipe, adapter):
    half = {"anchor": {"fraction": 0.5, "coarse_steps": 1, "steps": 3}}
    plan = resolve(make_recipe(objective=half, student={"num_steps": 3}, train={"batch_size": 1}), adapter)
    calls = calls_per_micro_batch(plan)
    assert calls["teacher"] == pytest.approx((1 + 0.5, 0))
    assert calls["student"][1] == pytest.approx(2 + 0.5)


def test_the_answer_says_that_it_is_calculated_and_a_slower_link_is_less_efficient(make_recipe, adapter, monkeypatch):
    monkeypatch.setattr("dpdmd.planning.traffic.update_operations", lambda plan, adapter: 1e9)
    plan = resolve(make_recipe(**DMD, train={"shard": True}), adapter)
    found = []
    for link in (400.0, 0.001):
        text = describe_traffic(plan, adapter, Cluster(8, 8, link), 80)
        assert "8 x 8 GPUs, shares over all, calculated for one update" in text and f"at {link:g} Gbit/s" in text
        found.append([float(share) for share in re.findall(r"([\d.e-]+) %", text)][-2:])
    assert all(slow <= fast for slow, fast in zip(found[1], found[0], strict=True)) and found[1][0] < found[0][0]
