"""Checkpoints beside training: what is written is what was there, and everything that has to wait for it does."""

import threading

import pytest
import torch
from trainers import new_trainer, train

from dpdmd.store.tensors import read_tensors
from dpdmd.training.run import checkpoint as checkpoints
from dpdmd.training.run.checkpoint import latest_checkpoint
from dpdmd.training.run.saving import Saving
from dpdmd.training.trainer import Trainer


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until it is set."""
    event, real = threading.Event(), checkpoints._write_all
    monkeypatch.setattr(checkpoints, "_write_all", lambda *args: (event.wait(60), real(*args))[1])
    return event


def test_training_goes_on_and_what_is_written_is_what_was_there(make_recipe, adapter, gate, tmp_path):
    trainer = new_trainer(make_recipe(train={"ema_decay": 0.5}), adapter)
    trainer.iterate()
    before = {name: p.detach().clone() for name, p in trainer.roles.parameters("student").items()}
    trainer.save(tmp_path, wait=False)
    trainer.iterate()
    assert latest_checkpoint(tmp_path) is None
    gate.set()
    trainer.saving.wait()
    written = read_tensors(tmp_path / "step-000001" / "student.safetensors")
    assert all(torch.equal(written[name], before[name]) for name in before)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.roles.parameters("student").items())
    trainer.save(tmp_path)
    moments = read_tensors(tmp_path / "step-000002" / "student_optimizer.safetensors")
    assert all(moments[f"step/{name}"] == 2 for name in before)


def test_the_next_save_waits_for_the_one_before(make_recipe, adapter, gate, tmp_path):
    trainer = new_trainer(make_recipe(), adapter)
    trainer.iterate()
    trainer.save(tmp_path, wait=False)
    trainer.iterate()
    threading.Timer(0.2, gate.set).start()
    trainer.save(tmp_path, wait=False)
    assert (tmp_path / "step-000001" / "state.json").is_file()
    trainer.saving.wait()
    assert latest_checkpoint(tmp_path).step == 2


def test_what_cannot_be_written_stops_the_run_where_it_waits_and_leaves_the_older_ones(
    make_recipe, adapter, monkeypatch
):
    real = checkpoints._write_all

    def full(folder, tensors):
        if folder.name.startswith(".step-000002"):
            raise OSError(28, "No space left on device")
        return real(folder, tensors)

    monkeypatch.setattr(checkpoints, "_write_all", full)
    recipe = make_recipe(checkpoint={"every": 1})
    with pytest.raises(OSError, match=r"could not write the checkpoint .*step-000002: No space left"):
        train(recipe, adapter, progress=False)
    monkeypatch.undo()
    folder = train(recipe, adapter, resume=True, progress=False)
    assert latest_checkpoint(folder / "checkpoints").step == 4


def test_a_run_that_fails_keeps_the_checkpoint_that_was_being_written(make_recipe, adapter, gate, monkeypatch):
    real = Trainer.iterate

    def failing(self):
        if self.step == 2:
            threading.Timer(0.2, gate.set).start()
            raise FloatingPointError("the loss is not finite")
        return real(self)

    monkeypatch.setattr(Trainer, "iterate", failing)
    recipe = make_recipe(checkpoint={"every": 2})
    with pytest.raises(FloatingPointError):
        train(recipe, adapter, progress=False)
    assert latest_checkpoint(f"{recipe.output.folder}/checkpoints").step == 2


def test_an_error_of_the_thread_is_raised_once():
    saving = Saving()

    def write(group):
        raise OSError("the disk is gone")

    saving.start(write)
    with pytest.raises(OSError, match="the disk is gone"):
        saving.wait()
    saving.wait()
