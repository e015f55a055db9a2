import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dpdmd.compare import commands
from dpdmd.compare.arms import Arm, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.store.files import read_json

TEACHER = Arm("teacher", model="scenes")
DMD = Arm("dmd", "scenes_dmd", {"train.num_updates": 3})


def test_students_are_trained_then_sampled_and_models_sampled_alone(called, prompts, tmp_path):
    few = Arm("few", model="scenes", sampling=("--num-inference-steps", "4"))
    run_all(arrange(tmp_path, [TEACHER, few], [DMD], [7]), tmp_path, prompts=prompts, images_per_prompt=4)
    folder = tmp_path / "seed-7" / "dmd"
    assert called.names() == [
        ("sample", "scenes"),
        ("sample", "scenes"),
        ("train", "scenes_dmd"),
        ("sample", str(folder / "student")),
    ]
    assert called.calls[1][-2:] == ("--num-inference-steps", "4")
    assert {"train.seed=7", "train.num_updates=3", f"output.folder={folder}"} < set(called.calls[2])
    assert read_json(folder / "cost.json") == {"seconds": 4.0, "peak_memory_bytes": 4000}
    assert (tmp_path / "prompts.txt").read_text().splitlines() == prompts


def test_finished_commands_are_not_repeated(called, prompts, tmp_path):
    runs = arrange(tmp_path, [TEACHER], [DMD], [0])
    for _ in range(2):
        run_all(runs, tmp_path, prompts=prompts, images_per_prompt=4)
    assert len(called.calls) == 3


def test_an_interrupted_training_is_resumed(called, prompts, tmp_path):
    runs = arrange(tmp_path, [], [DMD], [0])
    called.fails = {"dmd": 130}
    with pytest.raises(ChildProcessError, match=r"dpdmd train scenes_dmd .* ended with exit code 130"):
        run_all(runs, tmp_path, prompts=prompts, images_per_prompt=4)
    called.fails = {}
    run_all(runs, tmp_path, prompts=prompts, images_per_prompt=4)
    assert [(call[0], "--resume" in call) for call in called.calls] == [
        ("train", False),
        ("train", True),
        ("sample", False),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overrides": {"train.num_updates": 4}},
            "was made by `dpdmd train .* this comparison needs .* choose another folder",
        ),
        ({"sampling": ("--num-inference-steps", "4")}, "was made by `dpdmd sample .* and this comparison needs"),
        ({"overrides": {"train.num_updates": 3, "train.warmup": 9}}, "was made by"),
    ],
)
def test_what_other_arguments_made_is_refused_before_anything_runs(called, prompts, tmp_path, change, message):
    runs = arrange(tmp_path, [], [DMD], [0, 1])
    run_all(runs[1:], tmp_path, prompts=prompts, images_per_prompt=4)
    changed = arrange(tmp_path, [], [replace(DMD, **change)], [0, 1])
    with pytest.raises(ValueError, match=message):
        run_all(changed, tmp_path, prompts=prompts, images_per_prompt=4)
    assert len(called.calls) == 2


def test_a_recipe_file_that_has_changed_since_is_refused(called, prompts, tmp_path):
    file = tmp_path / "mine.toml"
    text = '[model]\nteacher = "scenes"\n[data]\nprompts = "scenes"\n[output]\nfolder = "x"\n[train]\nwarmup = '
    file.write_text(text + "1")
    runs = arrange(tmp_path / "out", [], [Arm("mine", str(file))], [0])
    run_all(runs, tmp_path / "out", prompts=prompts, images_per_prompt=4)
    file.write_text(text + "2")
    with pytest.raises(ValueError, match=r"train.warmup: the run has 1, the recipe 2"):
        run_all(runs, tmp_path / "out", prompts=prompts, images_per_prompt=4)


def test_other_prompts_are_refused(called, prompts, tmp_path):
    run_all([Run(TEACHER, tmp_path / "t")], tmp_path, prompts=prompts, images_per_prompt=4)
    with pytest.raises(ValueError, match=r"prompts.txt has other prompts; choose another folder"):
        run_all([Run(TEACHER, tmp_path / "t")], tmp_path, prompts=prompts[:1], images_per_prompt=4)


def test_a_failed_training_is_recorded_once_and_stops_nobody(called, prompts, tmp_path):
    runs = arrange(tmp_path, [TEACHER], [DMD], [0, 1])
    called.fails = {"seed-0": 1}
    for _ in range(2):
        run_all(runs, tmp_path, prompts=prompts, images_per_prompt=4)
    assert [name for name, _ in called.names()] == ["sample", "train", "train", "sample"]
    assert [failure(run) for run in runs] == [None, {"step": 30, "error": "loss/dmd = inf"}, None]
    assert not (runs[1].folder / "cost.json").exists()


def test_exit_code_one_without_a_loss_that_is_not_finite_is_no_failed_run(called, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(called, "train", lambda arguments: 1)  # a full disk, say
    with pytest.raises(ChildProcessError, match="ended with exit code 1"):
        run_all(arrange(tmp_path, [], [DMD], [0, 1]), tmp_path, prompts=prompts, images_per_prompt=4)
    assert len(called.calls) == 1


def test_a_refused_command_is_a_users_error_and_stops_the_others(called, prompts, tmp_path):
    called.fails = {"seed-0": 2}
    with pytest.raises(ValueError, match="ended with exit code 2"):
        run_all(arrange(tmp_path, [], [DMD], list(range(8))), tmp_path, prompts=prompts, images_per_prompt=4)
    assert len(called.calls) == 1


def test_jobs_run_side_by_side_each_with_its_share_of_the_cores_and_a_gpu(monkeypatch, prompts, tmp_path):
    together, environments = threading.Barrier(2, timeout=20), []

    def call(arguments, *, environment, **_):
        environments.append(environment)
        together.wait()
        return {"seconds": 1.0, "peak_memory_bytes": 1, "exit_code": 0}

    monkeypatch.setattr(commands, "_call", call)
    monkeypatch.setattr(commands, "_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(commands.os, "cpu_count", lambda: 8)
    runs = [Run(replace(TEACHER, name=name), tmp_path / name) for name in "abcd"]
    run_all(runs, tmp_path, prompts=prompts, images_per_prompt=1, jobs=2)
    assert len(environments) == 4 and {e["OMP_NUM_THREADS"] for e in environments} == {"4"}
    assert {(e["TQDM_POSITION"], e["CUDA_VISIBLE_DEVICES"]) for e in environments} == {("0", "3"), ("1", "5")}


def test_one_job_has_the_machine_to_itself(called, prompts, tmp_path):
    run_all([Run(TEACHER, tmp_path / "t")], tmp_path, prompts=prompts, images_per_prompt=1)
    assert called.options[0]["environment"] == {}


@pytest.mark.parametrize(("number", "visible", "expected"), [(2, None, "01"), (2, "4,7,8", "47"), (0, "", "")])
def test_gpus_are_those_that_this_process_may_use(monkeypatch, number, visible, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "".join(commands._gpus()) == expected


def test_a_batch_size_changes_the_call_and_not_what_is_remembered(called, prompts, tmp_path):
    run = Run(TEACHER, tmp_path / "t")
    run_all([run], tmp_path, prompts=prompts, images_per_prompt=1, batch_size=3)
    assert called.options[0]["sampling"] == ("--batch-size", "3")
    run_all([run], tmp_path, prompts=prompts, images_per_prompt=1, batch_size=1)
    assert len(called.calls) == 1


def _python(monkeypatch, tmp_path: Path, text: str) -> None:
    """Let `python -m dpdmd ...` be another program."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_command_is_a_separate_process(monkeypatch, tmp_path):
    _python(monkeypatch, tmp_path, f'echo "$* $MARK" > {tmp_path}/seen; exit 7')
    with (tmp_path / "lock").open("w") as lock:
        cost = commands._call(
            ["sample", "x"], environment={"MARK": "here"}, lock=lock.fileno(), sampling=("--batch-size", "3")
        )
    assert (tmp_path / "seen").read_text() == "-m dpdmd sample x --batch-size 3 here\n"
    assert cost["exit_code"] == 7 and cost["seconds"] > 0 and cost["peak_memory_bytes"] > 0


@pytest.mark.slow
def test_while_a_command_of_a_killed_comparison_lives_no_other_begins(monkeypatch, prompts, tmp_path):
    out, interpreter = tmp_path / "out", sys.executable
    _python(monkeypatch, tmp_path, "echo $$ > $0.pid; exec sleep 60")
    program = (
        "import sys; from pathlib import Path; from dpdmd.compare.commands import run_all; "
        "from dpdmd.compare.arms import Arm, Run; "
        f"sys.executable = {sys.executable!r}; out = Path({str(out)!r}); "
        f"run_all([Run(Arm('teacher', model='scenes'), out / 't')], out, prompts={prompts!r}, images_per_prompt=1)"
    )
    comparison = subprocess.Popen([interpreter, "-c", program])
    pid = tmp_path / "python.pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert comparison.poll() is None
        time.sleep(0.02)
    comparison.kill()
    comparison.wait()
    run = Run(TEACHER, out / "t")
    with pytest.raises(ValueError, match="another process works in"):
        run_all([run], out, prompts=prompts, images_per_prompt=1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _python(monkeypatch, tmp_path, "exit 0")
    deadline = time.monotonic() + 20
    while not (out / "t" / "cost.json").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ValueError):  # until the process is gone
            run_all([run], out, prompts=prompts, images_per_prompt=1)
    assert (out / "t" / "cost.json").exists()
