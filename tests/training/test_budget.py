"""A budget of training seconds, and the students kept on the way."""

import json

import pytest
import torch
from processes import in_processes
from tiny_adapter import TinyAdapter
from trainers import new_trainer, train

from dpdmd.models import load
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_tensors
from dpdmd.training.facts import facts
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.trainer import Trainer


def steps(recipe: Recipe) -> list[int]:
    return [json.loads(line)["step"] for line in RunFolder(recipe.output.folder).metrics.read_text().splitlines()]


@pytest.fixture
def second_per_update(monkeypatch):
    """Every update takes a second by the trainer's clock."""
    iterate = Trainer.iterate

    def timed(self):
        before = self.seconds
        row = iterate(self)
        self.seconds = before + 1.0
        return row | {"seconds": self.seconds}

    monkeypatch.setattr(Trainer, "iterate", timed)


@pytest.mark.parametrize(("max_seconds", "done"), [(0.5, 1), (2.0, 2), (2.5, 3), (100.0, 4)])
def test_a_run_ends_with_the_update_in_which_its_seconds_are_over(
    make_recipe, adapter, second_per_update, max_seconds, done
):
    recipe = make_recipe(train={"num_updates": 4, "max_seconds": max_seconds}, checkpoint={"every": 3})
    folder = train(recipe, adapter, progress=False)
    assert steps(recipe) == list(range(1, done + 1))
    assert read_json(folder / "student/student.json")["updates"] == done
    assert read_json(folder / f"checkpoints/step-{done:06d}/state.json")["seconds"] == done


def test_a_resumed_run_goes_on_counting_its_seconds_and_may_be_given_more(make_recipe, adapter, second_per_update):
    def recipe(max_seconds):
        return make_recipe(train={"num_updates": 9, "max_seconds": max_seconds})

    train(recipe(2), adapter, progress=False)
    train(recipe(5), adapter, resume=True, progress=False)
    assert steps(recipe(5)) == [1, 2, 3, 4, 5]
    # The time is up already: it ends at once, like a run that is resumed after its last update.
    folder = train(recipe(3), adapter, resume=True, progress=False)
    assert read_json(folder / "student/student.json")["updates"] == 5


def test_a_student_is_kept_with_every_checkpoint_and_can_be_sampled(make_recipe, adapter, monkeypatch):
    recipe = make_recipe(
        train={"num_updates": 5, "ema_decay": 0.5}, checkpoint={"every": 2, "keep": 1, "students": True}
    )
    run = RunFolder(train(recipe, adapter, progress=False))
    assert list(run.kept_students()) == [2, 4, 5]
    last = read_tensors(run.student / "student.safetensors")
    kept = read_tensors(run.kept_students()[5] / "student.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in last)

    shorter = make_recipe("shorter", train={"num_updates": 2, "ema_decay": 0.5})
    expected = read_tensors(train(shorter, adapter, progress=False) / "student/student.safetensors")
    monkeypatch.setattr(load, "load_adapter", lambda source, loras=(): TinyAdapter(source))
    sampler = load.load_sampler(str(run.kept_students()[2]))
    assert sampler.grid == adapter.uniform_grid(3) and sampler.base == "tiny"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in sampler.network.state_dict().items())


def test_students_are_not_kept_by_default(make_recipe, adapter):
    assert not (train(make_recipe(), adapter, progress=False) / "students").exists()


def test_a_run_killed_after_a_kept_student_keeps_the_same_ones(make_recipe, adapter, monkeypatch):
    settings = {"train": {"num_updates": 4}, "checkpoint": {"every": 1, "students": True}}
    whole = RunFolder(train(make_recipe("whole", **settings), adapter, progress=False))
    parts = make_recipe("parts", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # The third student is written, its checkpoint is not.
        save = Trainer.save
        patch.setattr(
            Trainer,
            "save",
            lambda self, folder, **how: save(self, folder, **how) if self.step < 3 else _raise(KeyboardInterrupt),
        )
        train(parts, adapter, progress=False)
    run = RunFolder(parts.output.folder)
    assert list(run.kept_students()) == [1, 2, 3]
    # With fewer updates it does not reach step 3 again.
    train(parts.model_copy(update={"train": parts.train.model_copy(update={"num_updates": 2})}), adapter, resume=True)
    assert list(run.kept_students()) == [1, 2]
    train(parts, adapter, resume=True, progress=False)
    for step, folder in whole.kept_students().items():
        mine, theirs = (read_tensors(f / "student.safetensors") for f in (run.kept_students()[step], folder))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_run_that_is_no_longer_finite_leaves_word_until_it_goes_on(make_recipe, adapter, monkeypatch):
    recipe = make_recipe()
    run = RunFolder(recipe.output.folder)
    iterate = Trainer.iterate
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr(
            Trainer,
            "iterate",
            lambda self: iterate(self) if self.step < 3 else _raise(FloatingPointError("loss = inf")),
        )
        train(recipe, adapter, progress=False)
    assert read_json(run.failure) == {"step": 3, "error": "loss = inf"}
    train(recipe, adapter, resume=True, progress=False)
    assert not run.failure.exists() and steps(recipe) == [1, 2, 3, 4]


def test_what_a_comparison_counts_is_in_the_provenance(make_recipe, adapter):
    trainer = new_trainer(make_recipe(objective={"name": "dmd"}), adapter)
    trainer.parts.networks["judge"] = torch.nn.Linear(3, 2)
    counted = facts(trainer.plan, trainer.parts)
    # A rollout of 3 calls for two of the fake score; the student's rollout; guided teacher and fake score.
    assert counted["forwards_per_update"] == 3 + 2 + 3 + 2 + 1
    assert counted["backwards_per_update"] == 2 + 3
    assert counted["extra_parameters"] == {"judge": 8}


def _clock_of_its_own(recipe: Recipe) -> None:
    """The processes' clocks differ: by the second one's the time is over at update 2, by the first one's at 4."""
    iterate = Trainer.iterate

    def timed(self):
        row = iterate(self)
        self.seconds = self.step * (1.0 + self.accelerator.process_index)
        return row

    Trainer.iterate = timed
    train(recipe, TinyAdapter(), progress=False)


@pytest.mark.slow
def test_two_processes_end_at_the_same_update(make_recipe):
    recipe = make_recipe(train={"num_updates": 9, "max_seconds": 4.0}, checkpoint={"every": 3, "students": True})
    in_processes(_clock_of_its_own, recipe)
    assert steps(recipe) == [1, 2]
    assert list(RunFolder(recipe.output.folder).kept_students()) == [2]


def _raise(error):
    raise error
