import math

import pytest
import torch

from dpdmd.compare.arms import Arm, Run, arrange
from dpdmd.compare.commands import run_all
from dpdmd.compare.measure import measure, num_spikes, training_metrics
from dpdmd.evaluate.scores import quality
from dpdmd.store.files import read_json
from dpdmd.store.jsonl import append_row

ARMS = ([Arm("teacher", model="scenes")], [Arm("dmd", "scenes_dmd")])


def noise(length: int, seed: int = 0) -> list[float]:
    """A quantity that varies by about a third around 1."""
    values = 0.3 * torch.randn(length, generator=torch.Generator().manual_seed(seed))
    return values.exp().tolist()


def test_ordinary_noise_and_a_trend_have_no_spikes():
    assert num_spikes(noise(2000)) == 0
    falling = [value * math.exp(-i / 100) for i, value in enumerate(noise(600))]
    assert num_spikes(falling) == 0
    assert num_spikes(falling[::-1]) == 0
    assert num_spikes([]) == num_spikes([3.0]) == 0


def test_spikes_are_counted_one_for_each_time_the_usual_size_is_left():
    log = noise(300)
    for i in (60, 150, 151, 152, 299):
        log[i] *= 20
    assert num_spikes(log) == 3


@pytest.mark.parametrize(("factor", "count"), [(4.9, 0), (5.1, 1)])
def test_a_spike_is_above_five_times_the_median_of_the_fifty_before(factor, count):
    # 25 values of 1 would win among the last 60; among the last 50 they are as many as the others.
    assert num_spikes([1.0] * 34 + [3.0] * 26 + [3.0 * factor]) == count
    assert num_spikes([1.0] * 10 + [factor]) == count
    assert num_spikes([1.0] * 9 + [100.0]) == 0


def test_a_quantity_without_a_usual_size_has_no_spikes():
    assert num_spikes([-1.0, 1.0] * 30 + [50.0]) == 0


def test_cost_and_stability_of_a_training(called, prompts, tmp_path):
    (run,) = arrange(tmp_path, [], ARMS[1], [0])
    run_all([run], tmp_path, prompts=prompts, images_per_prompt=2)
    metrics = training_metrics(run)
    assert metrics == {
        "updates": 30,
        "training_seconds": 16.0,
        "seconds_per_cycle": pytest.approx(0.5),
        "forwards_per_update": 32,
        "backwards_per_update": 9,
        "extra_parameters": 10,
        "training_memory_bytes": 2**20,
        "loss_spikes": 0,
        "grad_norm_spikes": 1,
        "failed": 0.0,
    }


def test_a_run_of_an_older_version_lacks_what_it_did_not_write(tmp_path):
    run = Run(Arm("dmd", "scenes_dmd"), tmp_path, 0)
    append_row(tmp_path / "metrics.jsonl", {"step": 1, "seconds": 2.0})
    metrics = training_metrics(run)
    assert metrics["forwards_per_update"] is metrics["extra_parameters"] is metrics["training_memory_bytes"] is None
    assert (metrics["updates"], metrics["seconds_per_cycle"]) == (1, 2.0)


def test_every_run_is_scored_against_the_reference(called, prompts, tmp_path):
    runs = arrange(tmp_path, *ARMS, [0, 1])
    called.fails = {"seed-1": 1}
    run_all(runs, tmp_path, prompts=prompts, images_per_prompt=4)
    teacher, dmd, failed = measure(runs, runs[0])
    assert teacher["diversity_share"] == pytest.approx(1.0) and teacher["frechet"] == pytest.approx(0, abs=1e-6)
    assert "failed" not in teacher and teacher["seconds"] == 2.0
    assert (dmd["seconds"], dmd["peak_memory_bytes"], dmd["failed"], dmd["updates"]) == (4.0, 3000, 0.0, 30)
    for key in ("diversity", "named_accuracy", "validity", "quality"):
        low, high = dmd["intervals"][key]
        assert low <= dmd[key] + 1e-9 and dmd[key] - 1e-9 <= high
    assert failed["failed"] == 1.0 and "diversity" not in failed and "seconds" not in failed
    written = read_json(runs[1].folder / "metrics.json")
    assert written["diversity"] == dmd["diversity"] and "per_prompt" in written and "per_prompt" not in dmd


def test_fewer_images_are_compared_with_the_same_seeds_of_the_reference(called, prompts, tmp_path):
    """The first three images of each prompt against the teacher's first three: the teacher is itself."""
    teacher, few = Run(ARMS[0][0], tmp_path / "teacher"), Run(Arm("few", model="scenes"), tmp_path / "few")
    run_all([teacher], tmp_path, prompts=prompts, images_per_prompt=5)
    run_all([few], tmp_path, prompts=prompts, images_per_prompt=3)
    for i in range(2):
        for seed in range(3):
            image = (teacher.folder / "samples" / f"{5 * i + seed}.png").read_bytes()
            (few.folder / "samples" / f"{3 * i + seed}.png").write_bytes(image)
    (row,) = measure([few], teacher)
    assert row["diversity_share"] == pytest.approx(1.0) and row["images_per_prompt"] == 3
    with pytest.raises(ValueError, match="must have all of the seeds"):
        measure([teacher], few)


def test_quality_is_validity_times_accuracy_prompt_by_prompt_and_precision_elsewhere():
    rows = [{"validity": 0.5, "named_accuracy": 1.0}, {"validity": 1.0, "named_accuracy": 0.5}]
    estimate = quality({"per_prompt": rows, "precision": 0.9})
    assert (estimate.value, estimate.interval) == (0.5, [0.5, 0.5])
    assert quality({"per_prompt": [{}, {}], "precision": 0.9}).value == 0.9
    assert quality({"per_prompt": [{}, {}]}) is None
