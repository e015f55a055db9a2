"""The command line under torchrun: how it is stopped, and how it ends when it cannot continue."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainers import newest as newest_checkpoint

from dpdmd.recipe.toml import dump_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(make_recipe, tmp_path):
    """launch(*arguments) begins `dpdmd train` in two processes, on an endless recipe that saves at its end only."""
    recipe = tmp_path / "recipe.toml"
    endless = make_recipe(train={"num_updates": 100_000, "batch_size": 1}, checkpoint={"every": 0})
    recipe.write_text(dump_recipe(endless))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    started = []

    def begin(*arguments, environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
        settings = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [*torchrun, str(Path(__file__).with_name("launched.py")), "train", str(recipe), *arguments]
        started.append(
            subprocess.Popen(
                command, env=os.environ | settings | (environment or {}), stderr=subprocess.PIPE, text=True, **options
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()


def test_a_stopped_launch_saves_first(launch, tmp_path):
    """SIGTERM reaches torchrun alone, which passes it on, and whose own exit code is then 1."""
    process = launch()
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    saved = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert errors.count(f"stopped after step {saved.step}; the checkpoint is saved") == 1


def test_a_launch_that_meets_a_full_disk_ends(launch, tmp_path):
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    # Python would cut off the files of the modules that it compiles here, and fail to read them later.
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    process = launch("--set", "checkpoint.every=2", environment=environment, preexec_fn=limit_files)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: could not write the checkpoint" in errors
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
