import sys
import threading
from contextlib import nullcontext

import pytest

from dpdmd import compare
from dpdmd.compare import Arm, compare_arms, run_arm, table
from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.files import read_json, write_png
from dpdmd.randomness import generator
from dpdmd.world.scenes import render, sample_scenes

PROMPTS = ["a red circle", "a blue cross"]


@pytest.fixture
def commands(monkeypatch):
    """Record the commands instead of running them; `sample` draws scenes of the world."""
    calls = []

    def run(arguments: list[str], environment: dict[str, str]) -> dict:
        calls.append(tuple(arguments))
        if arguments[0] == "sample":
            from pathlib import Path

            folder = Path(arguments[arguments.index("--out") + 1])
            images = render(sample_scenes(8, generator(len(calls), "test")))
            entries = []
            for i, image in enumerate(images):
                write_png(folder / f"{i}.png", image)
                entries.append(ImageEntry(PROMPTS[i // 4], i % 4, f"{i}.png"))
            write_manifest(folder, entries, {})
        return {"seconds": 2.0, "peak_memory_bytes": 1000 * len(calls)}

    monkeypatch.setattr(compare, "_run", run)
    return calls


def test_arms_are_trained_sampled_scored_and_summed_up(commands, tmp_path):
    arms = [Arm("teacher"), Arm("dmd", recipe="scenes_dmd", overrides={"train.num_updates": 3})]
    rows = compare_arms(arms, tmp_path, teacher="scenes", prompts=PROMPTS, num_seeds=4)
    assert [call[:2] for call in commands] == [
        ("sample", "scenes"),
        ("train", "scenes_dmd"),
        ("sample", str(tmp_path / "dmd")),
    ]
    assert "train.num_updates=3" in commands[1] and f"output.folder={tmp_path / 'dmd'}" in commands[1]
    assert rows["teacher"]["diversity_share"] == pytest.approx(1.0)
    assert rows["dmd"]["seconds"] == 4.0 and rows["dmd"]["peak_memory_bytes"] == 3000
    written = read_json(tmp_path / "metrics.json")["arms"]
    for name in ("teacher", "dmd"):
        for key in ("diversity", "diversity_share", "named_accuracy", "validity", "effective_modes"):
            assert isinstance(written[name][key], float)
            low, high = written[name]["intervals"][key]
            assert low <= written[name][key] + 1e-9 and written[name][key] - 1e-9 <= high
    assert "| dmd |" in table(rows)


def test_finished_commands_are_not_repeated(commands, tmp_path):
    arms = [Arm("teacher"), Arm("dmd", recipe="scenes_dmd")]
    for _ in range(2):
        compare_arms(arms, tmp_path, teacher="scenes", prompts=PROMPTS, num_seeds=4)
    assert len(commands) == 3


def test_results_of_other_arguments_are_not_taken_for_these(commands, tmp_path):
    for updates, expectation in ((3, nullcontext()), (4, pytest.raises(ValueError, match="choose another folder"))):
        arm = Arm("dmd", "scenes_dmd", {"train.num_updates": updates})
        with expectation:
            run_arm(arm, tmp_path / "dmd", teacher="scenes", prompt_file=tmp_path / "p", num_seeds=4)


def test_an_interrupted_training_is_resumed(commands, tmp_path):
    (tmp_path / "dmd").mkdir()
    (tmp_path / "dmd" / "recipe.toml").write_text("")
    run_arm(Arm("dmd", "scenes_dmd"), tmp_path / "dmd", teacher="scenes", prompt_file=tmp_path / "p", num_seeds=4)
    assert "--resume" in commands[0]


def test_a_comparison_needs_a_teacher(tmp_path):
    with pytest.raises(ValueError, match='one arm must be called "teacher"'):
        compare_arms([Arm("dmd", "scenes_dmd")], tmp_path, teacher="scenes", prompts=PROMPTS, num_seeds=4)


def test_a_failing_command_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="dpdmd sample nothing ended with exit code 1"):
        compare._run(["sample", "nothing"], {})


def test_jobs_run_side_by_side_each_with_its_share_of_the_cores(monkeypatch, tmp_path):
    together, environments = threading.Barrier(2, timeout=20), []

    def run(arguments: list[str], environment: dict[str, str]) -> dict:
        environments.append(environment)
        together.wait()
        return {"seconds": 1.0, "peak_memory_bytes": 1}

    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(compare.os, "cpu_count", lambda: 8)
    tasks = [(Arm(name), tmp_path / name) for name in "abcd"]
    compare.run_arms(tasks, tmp_path / "p", teacher="scenes", prompts=PROMPTS, num_seeds=1, jobs=2)
    assert len(environments) == 4 and {e["OMP_NUM_THREADS"] for e in environments} == {"4"}
    assert {e["TQDM_POSITION"] for e in environments} == {"0", "1"}


def test_after_a_failure_nothing_more_is_begun(monkeypatch, tmp_path):
    begun = []

    def run(arguments: list[str], environment: dict[str, str]) -> dict:
        begun.append(arguments)
        raise ChildProcessError("dpdmd sample scenes ended with exit code 1")

    monkeypatch.setattr(compare, "_run", run)
    tasks = [(Arm(name), tmp_path / name) for name in "abcdefgh"]
    with pytest.raises(ChildProcessError):
        compare.run_arms(tasks, tmp_path / "p", teacher="scenes", prompts=PROMPTS, num_seeds=1)
    assert len(begun) == 1
