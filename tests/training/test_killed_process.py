"""kill -9 at any moment loses at most what came after the last checkpoint, and the end is the same to the bit."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from tiny_adapter import TinyAdapter
from trainers import newest as newest_checkpoint
from trainers import train

from dpdmd.recipe.schema import Recipe
from dpdmd.store.tensors import read_tensors

NUM_UPDATES = 40


def go_on(recipe: Recipe) -> None:
    torch.set_num_threads(1)
    folder = Path(recipe.output.folder)
    train(recipe, TinyAdapter(), resume=folder.exists(), progress=False)


def final(recipe: Recipe) -> dict[str, torch.Tensor]:
    folder = Path(recipe.output.folder)
    files = [
        *sorted((folder / "checkpoints" / f"step-{NUM_UPDATES:06d}").glob("*.safetensors")),
        folder / "student/student.safetensors",
    ]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in read_tensors(file).items()}


@pytest.mark.slow
def test_a_run_survives_being_killed_at_many_moments(make_recipe):
    options = {"train": {"num_updates": NUM_UPDATES, "ema_decay": 0.5}, "checkpoint": {"every": 1}}
    whole, parts = make_recipe("whole", **options), make_recipe("parts", **options)
    context = multiprocessing.get_context("forkserver")  # imports once; every process below starts from there
    context.set_forkserver_preload(["tiny_adapter", "dpdmd.training.loop", "accelerate"])
    uninterrupted = context.Process(target=go_on, args=(whole,))
    uninterrupted.start()
    uninterrupted.join()
    rng, kills, during_a_write = random.Random(0), 0, 0
    checkpoints = Path(parts.output.folder) / "checkpoints"
    while True:
        process = context.Process(target=go_on, args=(parts,))
        process.start()
        if kills < 25:
            before = newest(checkpoints)
            deadline = time.monotonic() + 60
            # In turn some time after a checkpoint, and while one is being written.
            in_write = kills % 2 == 1
            while process.is_alive() and time.monotonic() < deadline:
                if any(checkpoints.glob(".step-*")) if in_write else newest(checkpoints) != before:
                    break
                time.sleep(0.001)
            time.sleep(0 if in_write else rng.uniform(0, 0.05))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        kills += 1
        during_a_write += any(checkpoints.glob(".step-*"))
        saved = newest_checkpoint(checkpoints)
        steps_logged = len((Path(parts.output.folder) / "metrics.jsonl").read_text().splitlines())
        # One update after the checkpoint, and one more while it was still being written.
        assert steps_logged - saved.step in (0, 1, 2)
    assert kills >= 10 and during_a_write >= 1
    expected, got = final(whole), final(parts)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def newest(checkpoints: Path) -> str:
    return max((path.name for path in checkpoints.glob("step-*")), default="")
