"""The settings are what runs, and what ends one process ends all of them: none is left waiting."""

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import in_processes, start_processes, train_tiny
from small_files import files_of_at_most
from tiny_adapter import TinyAdapter
from trainers import newest as newest_checkpoint

from dpdmd.distributed.processes import new_accelerator, rank_and_world_size
from dpdmd.recipe.schema import Recipe
from dpdmd.store.errors import StoppedBySignal
from dpdmd.store.files import read_json
from dpdmd.store.png import write_png
from dpdmd.store.tensors import read_tensors
from dpdmd.training import trainer
from dpdmd.training.run import trackers
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation import images as validation

LORA = {"roles": ["student", "fake_score"], "rank": 2}


def train_changed(recipe: Recipe, rank: int, change: Callable, folder: Path) -> None:
    """Train from `folder`, in process `rank` with `change`, which lasts as long as the process."""
    os.chdir(folder)
    new_accelerator()
    train_tiny((change(recipe) or recipe) if rank_and_world_size()[0] == rank else recipe)


def expect_error(recipe: Recipe, rank: int, change: Callable, folder: Path, error: type, match: str) -> None:
    """All processes end with the error that the change makes."""
    with pytest.raises(error, match=match):
        train_changed(recipe, rank, change, folder)


def full_disk(*args) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_for_checkpoint_four(recipe: Recipe) -> None:
    real, limit = Trainer.save, ExitStack()

    def save(self, folder, **how):
        if self.step == 4:
            self.saving.wait()  # the one before is whole
            limit.enter_context(files_of_at_most(1000))
        real(self, folder, **how)

    Trainer.save = save


def no_room_for_lines(recipe: Recipe) -> None:
    real = Path.open

    def open_or_fail(self, mode="r", **options):
        return full_disk() if self.name == "metrics.jsonl" and "a" in mode else real(self, mode, **options)

    Path.open = open_or_fail


def no_room_for_the_student(recipe: Recipe) -> None:
    trainer.write_tensors = full_disk


def no_room_for_pictures(recipe: Recipe) -> None:
    validation.write_png = full_disk


def no_tracker(recipe: Recipe) -> None:
    trackers._START["tensorboard"] = full_disk


def infinite_loss(recipe: Recipe) -> None:
    real = trainer.student_loss

    def student_loss(*args, **options):
        loss = real(*args, **options)
        return replace(loss, total=loss.total * torch.inf)

    trainer.student_loss = student_loss


def other_seed(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 7})})


def other_place(recipe: Recipe) -> None:
    os.chdir("elsewhere")


def other_weights(recipe: Recipe) -> None:
    real = TinyAdapter.load_network

    def load_network(self):
        network = real(self)
        network.second.bias.data += 1
        return network

    TinyAdapter.load_network = load_network


def nothing(recipe: Recipe) -> None:
    pass


@pytest.fixture
def recipe(make_recipe):
    def make(folder: str = "run", *, shard: bool = False, num_updates: int = 4, **sections) -> Recipe:
        return make_recipe(folder, train={"batch_size": 2, "shard": shard, "num_updates": num_updates}, **sections)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "rank"), [(False, 0), (True, 0), (True, 1)])
def test_a_full_disk_on_one_process_ends_all_and_leaves_the_older_checkpoint(recipe, tmp_path, shard, rank):
    broken, whole = recipe("broken", shard=shard), recipe("whole", shard=shard)
    match = r"could not write the checkpoint .*step-000004: .*File too large"
    in_processes(expect_error, broken, rank, no_room_for_checkpoint_four, tmp_path, OSError, match, seconds=60)
    assert [path.name for path in Path(broken.output.folder, "checkpoints").iterdir()] == ["step-000002"]
    in_processes(train_tiny, broken, True)
    in_processes(train_tiny, whole)
    mine, theirs = (read_tensors(Path(r.output.folder, "student/student.safetensors")) for r in (broken, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "change", "error", "match"),
    [
        (0, no_room_for_lines, OSError, r"could not write .*metrics\.jsonl: No space left"),
        (0, no_room_for_the_student, OSError, r"could not write the student: .*No space left.*--resume writes it"),
        (1, infinite_loss, FloatingPointError, "the student update of step 1 is not finite"),
        (1, other_seed, ValueError, r"the processes differ in train\.seed: 0 on process 0 .* 7 on process 1"),
        (1, other_weights, ValueError, "the processes differ in teacher"),
    ],
)
def test_what_goes_wrong_on_one_process_is_raised_by_all(recipe, tmp_path, rank, change, error, match):
    in_processes(expect_error, recipe(), rank, change, tmp_path, error, match, seconds=60)


@pytest.mark.slow
def test_a_tracker_that_does_not_start_ends_all_processes(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    tracked = recipe(output={"trackers": ["tensorboard"]})
    in_processes(expect_error, tracked, 0, no_tracker, tmp_path, OSError, "tensorboard does not start", seconds=60)


@pytest.mark.slow
def test_machines_with_other_prompts_or_another_folder_are_refused(recipe, tmp_path):
    for folder, prompt in ((tmp_path, "a cross"), (tmp_path / "elsewhere", "a ring")):
        folder.mkdir(exist_ok=True)
        (folder / "here.txt").write_text(f"{prompt}\n")
    other_prompts = recipe(data={"prompts": "here.txt"})
    arguments = (other_place, tmp_path, ValueError)
    in_processes(expect_error, other_prompts, 1, *arguments, "the processes differ in the prompts", seconds=60)
    (tmp_path / "elsewhere/here.txt").write_text("a cross\n")  # another place, the same prompts
    in_processes(train_changed, recipe("same", data={"prompts": "here.txt"}), 1, other_place, tmp_path)
    not_shared = recipe(output={"folder": "run"})
    in_processes(expect_error, not_shared, 1, *arguments, "run is another folder for process 1", seconds=60)


@pytest.mark.slow
def test_other_images_and_one_that_one_process_finds_broken_end_all(recipe, tmp_path):
    for i, folder in enumerate((tmp_path / "images", tmp_path / "elsewhere/images")):
        folder.mkdir(parents=True)
        for name in "abcd":
            write_png(folder / f"{name}.png", torch.full((3, 8, 8), float(i)))
    on_images = recipe(objective={"name": "dmd_adversarial", "adversarial": {"real": "images"}})
    arguments = (tmp_path, ValueError)
    in_processes(expect_error, on_images, 1, other_place, *arguments, "processes differ in images_hash", seconds=60)
    (tmp_path / "images/d.png").write_bytes(b"no picture")  # the second process reads it
    in_processes(expect_error, on_images, 1, nothing, *arguments, r"real: .*d\.png is not a readable", seconds=60)


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_stops_no_process(recipe, tmp_path):
    pictured = recipe(validation={"every": 1})
    in_processes(train_changed, pictured, 0, no_room_for_pictures, tmp_path)
    assert read_json(Path(pictured.output.folder, "student/student.json"))["updates"] == 4


def train_until_stopped(recipe: Recipe) -> None:
    try:
        train_tiny(recipe, Path(recipe.output.folder).exists())
    except StoppedBySignal as stopped:
        os._exit(stopped.exit_code)


def wait_for(folder: Path, pattern: str, process) -> None:
    deadline = time.monotonic() + 60
    while not any(folder.glob(pattern)) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copied", "sharded"])
def test_a_signal_to_one_process_stops_all_at_the_same_step(recipe, shard):
    endless = recipe(shard=shard, num_updates=100_000, checkpoint={"every": 0})
    folder = Path(endless.output.folder)
    first, second = start_processes(train_until_stopped, endless)
    wait_for(folder, "metrics.jsonl", second)
    os.kill(second.pid, signal.SIGTERM)
    for process in (first, second):
        process.join(60)
    assert [first.exitcode, second.exitcode] == [143, 143]
    saved = newest_checkpoint(folder / "checkpoints")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == saved.step
    in_processes(train_until_stopped, recipe(shard=shard, num_updates=saved.step + 1))


@pytest.mark.slow
def test_a_killed_process_takes_the_others_with_it(recipe):
    endless = recipe(num_updates=100_000)
    first, second = start_processes(train_until_stopped, endless)
    wait_for(Path(endless.output.folder), "metrics.jsonl", second)
    second.kill()
    first.join(60)
    assert first.exitcode not in (0, None)


@pytest.mark.slow
def test_a_sharded_run_survives_being_killed_at_many_moments(recipe):
    settings = {"shard": True, "num_updates": 12, "checkpoint": {"every": 1}, "lora": LORA}
    parts, whole = recipe("parts", **settings), recipe("whole", **settings)
    checkpoints = Path(parts.output.folder, "checkpoints")
    rng, during_a_write, step = random.Random(0), 0, 0
    for number in range(8):
        processes = start_processes(train_until_stopped, parts)
        wait_for(checkpoints, f"step-{step + 1:06d}", processes[0])
        if is_early := number % 2:
            wait_for(checkpoints, ".step-*", processes[0])
        time.sleep(rng.uniform(0, 0.01 if is_early else 0.1))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        during_a_write += any(checkpoints.glob(".step-*"))
        saved = newest_checkpoint(checkpoints)
        lines = Path(parts.output.folder, "metrics.jsonl").read_text().splitlines()
        # While a checkpoint is written the next update runs and is logged; its own save waits for the one before.
        assert len(lines) - saved.step in (0, 1, 2)
        step = saved.step
    assert during_a_write >= 2
    in_processes(train_until_stopped, parts)
    in_processes(train_until_stopped, whole)
    name = "student/pytorch_lora_weights.safetensors"
    mine, theirs = (read_tensors(Path(r.output.folder, name)) for r in (parts, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, name):
    accelerator = new_accelerator()
    assert accelerator.num_processes == 1
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=f"{name} says that 2 processes were started, but only 1 of them"):
        new_accelerator()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(ValueError, match=r"2 processes were started on .* torch finds 1 GPUs"):
        new_accelerator()
