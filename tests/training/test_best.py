"""The best students: which they are, that the folder has them at any moment, and why each is kept."""

import itertools
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from processes import in_processes, start_processes
from tiny_adapter import PictureAdapter
from trainers import train

from dpdmd.models.find import find_student
from dpdmd.store.files import read_json, write_json
from dpdmd.store.tensors import read_tensors
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation import best
from dpdmd.training.validation.best import keep_best, rank, read_best, remove_strays
from dpdmd.training.validation.scores import Judge

FLOOR = 0.8
SCENES = {"every": 1, "features": "scenes"}
# (quality, share of diversity) of updates 1, 2, ...
COURSE = [(0.5, 1.2), (0.7, 0.9), (0.9, 0.5), (0.8, 0.81), (0.8, 0.95), (0.95, 0.79), (0.6, 1.0)]


def entry(step, quality, share, judged_by="scenes"):
    return {"step": step, "quality": quality, "diversity_share": share, "judged_by": judged_by}


ENTRIES = [entry(step, *values) for step, values in enumerate(COURSE, start=1)]


def keep(folder, new, seen=(), *, number=1, floor=FLOOR):
    def write_student(place):
        write_json(place / "student.json", {"updates": new["step"]})
        (place / "student.safetensors").write_bytes(b"weights")

    return keep_best(folder, new, list(seen), write_student, number=number, floor=floor)


def keep_all(folder, entries, **limits):
    return [keep(folder, new, entries[:i], **limits) for i, new in enumerate(entries)]


def kept(folder):
    """Steps that best.json names, all of whose students are whole and the only ones."""
    steps = [e["step"] for e in read_best(folder)]
    for step in steps:
        assert read_json(folder / f"step-{step:06d}/student.json") == {"updates": step}
    return steps


def test_quality_decides_among_those_that_keep_the_floor():
    assert [e["step"] for e in rank(ENTRIES, FLOOR)] == [5, 4, 2, 7, 1, 6, 3]
    assert rank(ENTRIES, 0.0)[0]["step"] == 6
    # Diversity decides when none does, and in any order the same.
    assert [e["step"] for e in rank(ENTRIES, 2.0)] == [1, 7, 5, 2, 4, 6, 3]
    for shuffled in itertools.islice(itertools.permutations(ENTRIES), 0, 5040, 97):
        assert rank(list(shuffled), FLOOR) == rank(ENTRIES, FLOOR)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_keeping_on_the_way_ends_with_the_best_of_all(tmp_path, number):
    is_best = keep_all(tmp_path, ENTRIES, number=number)
    assert kept(tmp_path) == [e["step"] for e in rank(ENTRIES, FLOOR)][:number]
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", *(f"step-{s:06d}" for s in kept(tmp_path))}
    assert is_best == [True, True, False, True, True, False, False]
    assert find_student(tmp_path) == tmp_path / "step-000005"


def test_the_reason_for_keeping_a_student_is_stated(tmp_path):
    keep_all(tmp_path, ENTRIES, number=2)
    first, second = (e["why"] for e in read_best(tmp_path))
    assert first == (
        "quality 0.80, the highest of the 5 of 7 validated students that keep at least 0.8 of the teacher's "
        "diversity; it keeps 0.95"
    )
    assert second.startswith("quality 0.80, number 2 of the 5 of 7")
    keep_all(tmp_path / "low", ENTRIES[2:3])
    assert read_best(tmp_path / "low")[0]["why"].startswith(
        "it keeps 0.50 of the teacher's diversity, the highest of 1 validated students, none of which reached the 0.8"
    )


def test_students_judged_by_other_images_make_way(tmp_path):
    keep_all(tmp_path, [entry(1, 0.9, 1.0), entry(2, 0.1, 1.0, "another network")])
    assert kept(tmp_path) == [2] and "of the 1 of 1 " in read_best(tmp_path)[0]["why"]


@pytest.mark.parametrize("moment", ["writing", "naming", "removing"])
def test_a_run_killed_at_any_moment_has_whole_students_and_the_same_end(tmp_path, monkeypatch, moment):
    keep_all(tmp_path, ENTRIES[:1])

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "writing":
            real = write_json
            patch.setitem(globals(), "write_json", lambda path, value: (real(path, value), killed()))
        else:
            patch.setattr(*((best, "write_json") if moment == "naming" else (shutil, "rmtree")), killed)
        keep(tmp_path, ENTRIES[1], ENTRIES[:1])
    assert kept(tmp_path) == ([2] if moment == "removing" else [1])
    remove_strays(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", f"step-{kept(tmp_path)[0]:06d}"}
    keep(tmp_path, ENTRIES[1], ENTRIES[:1])
    assert kept(tmp_path) == [2]


def test_a_step_done_again_replaces_itself(tmp_path):
    keep_all(tmp_path, [entry(1, 0.5, 1.0), entry(2, 0.9, 1.0), entry(2, 0.7, 1.0)], number=2)
    assert [(e["step"], e["quality"]) for e in read_best(tmp_path)] == [(2, 0.7), (1, 0.5)]


def course(monkeypatch, values=COURSE):
    """Let validation find these scores, whatever is drawn."""

    def row(self, step, student, live):
        quality, share = values[step - 1]
        scores = {"validation/quality": quality, "validation/diversity_share": share, "validation/saturation": 0.0}
        return scores | {"alarms": {}, "judged_by": "course"}

    monkeypatch.setattr(Judge, "row", row)


def test_a_run_keeps_the_student_that_it_had_then(make_recipe, tmp_path, monkeypatch):
    course(monkeypatch)
    options = {"train": {"num_updates": 7, "ema_decay": 0.5}, "checkpoint": {"every": 1, "students": True, "best": 2}}
    folder = train(make_recipe(**options, validation=SCENES), PictureAdapter(tmp_path), progress=False)
    assert [e["step"] for e in read_best(folder / "students/best")] == [5, 4]
    for step in (5, 4):
        a, b = (read_tensors(folder / f"students/{p}step-{step:06d}/student.safetensors") for p in ("best/", ""))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_json(folder / "students/best/step-000005/student.json")["updates"] == 5


def test_a_resumed_run_keeps_what_an_uninterrupted_one_does(make_recipe, tmp_path, monkeypatch):
    course(monkeypatch)
    options = {"validation": SCENES, "checkpoint": {"every": 3}}
    adapter = PictureAdapter(tmp_path)
    train(make_recipe(train={"num_updates": 5}, **options), adapter, progress=False)
    shutil.rmtree(Path(make_recipe().output.folder) / "checkpoints/step-000005")  # as if killed after update 5
    seven = {"train": {"num_updates": 7}}
    resumed = train(make_recipe(**seven, **options), adapter, resume=True, progress=False)
    whole = train(make_recipe("whole", **seven, **options), adapter, progress=False)
    assert read_best(resumed / "students/best") == read_best(whole / "students/best")
    a, b = (find_student(place / "students/best") / "student.safetensors" for place in (resumed, whole))
    assert a.parent.name == "step-000005" and a.read_bytes() == b.read_bytes()


def test_none_is_kept_when_the_number_is_0_and_a_full_disk_costs_only_the_best_student(
    make_recipe, tmp_path, monkeypatch, capsys
):
    adapter = PictureAdapter(tmp_path)
    none = make_recipe("none", validation=SCENES, checkpoint={"best": 0})
    assert not (train(none, adapter, progress=False) / "students").exists()
    real = Trainer.write_student

    def write_student(self, folder):
        if folder.parent.name == "best":
            raise OSError(28, "No space left on device")
        real(self, folder)

    monkeypatch.setattr(Trainer, "write_student", write_student)
    folder = train(make_recipe("full", validation=SCENES), adapter, progress=False)
    assert "the best student is not kept (No space left on device); training continues" in capsys.readouterr().out
    assert (folder / "student/student.json").exists() and find_student(folder / "students/best") is None


def train_pictures(recipe, folder):
    torch.set_num_threads(1)
    train(recipe, PictureAdapter(folder), resume=Path(recipe.output.folder).exists(), progress=False)


@pytest.mark.slow
def test_a_run_killed_at_many_moments_always_has_a_best_student_and_ends_with_the_same(make_recipe, tmp_path):
    options = {"train": {"num_updates": 20}, "validation": SCENES, "checkpoint": {"every": 1, "best": 2}}
    whole, parts = make_recipe("whole", **options), make_recipe("parts", **options)
    in_processes(train_pictures, whole, tmp_path, number=1)
    place, rng, kills = Path(parts.output.folder) / "students/best", random.Random(0), 0
    while True:
        (process,) = start_processes(train_pictures, parts, tmp_path, number=1)
        before, deadline = names(place), time.monotonic() + 60
        while kills < 12 and names(place) == before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        if kills < 12:
            time.sleep(rng.choice([0, 0.001, 0.01, 0.1]))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        kills += 1
        for entry in read_best(place):
            read_tensors(place / entry["folder"] / "student.safetensors")
            assert read_json(place / entry["folder"] / "student.json")["updates"] == entry["step"]
    assert kills >= 5
    mine, theirs = (Path(recipe.output.folder) / "students/best" for recipe in (parts, whole))
    assert read_best(mine) == read_best(theirs) and names(mine) == names(theirs)


def names(folder):
    """The files, also while a run removes some: os.walk passes over a folder that is gone, where rglob raises."""
    paths = (Path(parent, name) for parent, _, files in os.walk(folder) for name in files)
    return {str(path.relative_to(folder)) for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_keep_what_one_does(make_recipe, tmp_path, shard):
    options = {"validation": SCENES | {"num_seeds": 3}, "checkpoint": {"every": 2, "best": 2}}
    one = make_recipe("one", train={"batch_size": 4, "accumulation": 2}, **options)
    two = make_recipe("two", train={"batch_size": 4, "shard": shard}, **options)
    in_processes(train_pictures, one, tmp_path, number=1)
    in_processes(train_pictures, two, tmp_path)
    mine, theirs = (read_best(Path(recipe.output.folder) / "students/best") for recipe in (one, two))
    assert [e["step"] for e in mine] == [e["step"] for e in theirs] and len(mine) == 2
    for a, b in zip(mine, theirs, strict=True):
        assert a["diversity_share"] == pytest.approx(b["diversity_share"], rel=1e-3)
