"""`dpdmd.train` from a script: more than once in a process, with an objective and callbacks of one's own."""

from dataclasses import dataclass, replace

import pytest

import dpdmd
from dpdmd.store.files import read_json


@dataclass(frozen=True)
class Power(dpdmd.Term):
    """The mean square of the samples."""

    name = "power"

    def __call__(self, step: dpdmd.StudentStep) -> dpdmd.TermResult:
        return dpdmd.TermResult(step.rollout.x0.square().mean())


def dmd_and_power(setting: dpdmd.ObjectiveSetting) -> dpdmd.Objective:
    base = dpdmd.dmd(setting)
    return replace(base, terms=(*base.terms, Power(weight=0.5)))


@pytest.fixture
def settings(tmp_path):
    """Overrides of a run of two small updates."""
    values = {"train.num_updates": 2, "train.batch_size": 2, "train.fake_updates": 1, "validation.every": 0}
    values |= {"output.folder": tmp_path / "run", "data.cache": tmp_path / "cache"}
    return [f"{key}={value}" for key, value in values.items()]


def without_time(rows):
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_training_twice_in_one_process_gives_the_same_run(settings):
    options = {"overrides": settings, "progress": False}
    first = dpdmd.train("scenes_dmd", **options)
    rows = without_time(first.metrics())
    with pytest.raises(ValueError, match="overwrite"):
        dpdmd.train("scenes_dmd", **options)
    assert without_time(first.metrics()) == rows
    assert without_time(dpdmd.train("scenes_dmd", **options, overwrite=True).metrics()) == rows
    assert first.student.joinpath("student.json").is_file()


def test_an_objective_of_ones_own_is_trained_recorded_and_needed_to_resume(settings):
    seen, options = [], {"overrides": settings, "progress": False}
    run = dpdmd.train("scenes_dmd", objective=dmd_and_power, callbacks=[seen.append], **options)
    rows = run.metrics()
    assert [row["step"] for row in rows] == [1, 2] and seen == rows
    assert all(row["loss/power"] > 0 and "loss/dmd" in row for row in rows)
    name = f"{__name__}:dmd_and_power"
    assert read_json(run.student / "student.json")["objective"] == name
    assert f'name = "{name}"' in run.folder.joinpath("recipe.toml").read_text()
    more = [*settings, "train.num_updates=3"]
    with pytest.raises(ValueError, match=r"objective\.name"):
        dpdmd.train("scenes_dmd", overrides=more, progress=False, resume=True)
    assert run.metrics() == rows
    dpdmd.train("scenes_dmd", objective=dmd_and_power, overrides=more, progress=False, resume=True)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3] and run.metrics()[:2] == rows
