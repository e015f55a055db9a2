"""A full, small or read-only disk is reported before the run, or costs at most what came after the checkpoint."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_files import files_of_at_most
from tiny_adapter import TinyNetwork
from trainers import train

from dpdmd.training.trainer import Trainer
from dpdmd.training.validation import images as validation


def student_bytes(folder: Path) -> bytes:
    return (folder / "student/student.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (0, r"could not write .*metrics\.jsonl"),
        (100, r"could not write .*metrics\.jsonl"),  # half a line
        (2000, "could not write the checkpoint .*step-000004"),
    ],
)
def test_a_run_that_meets_a_full_disk_goes_on_when_there_is_room(make_recipe, adapter, monkeypatch, room, message):
    whole = train(make_recipe("whole"), adapter, progress=False)
    recipe, real = make_recipe("parts"), Trainer._student_update
    folder = Path(recipe.output.folder)

    def fill_the_disk(self):
        if self.step == 3:
            stack.enter_context(files_of_at_most((folder / "metrics.jsonl").stat().st_size + room))
        return real(self)

    with ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr(Trainer, "_student_update", fill_the_disk)
        with pytest.raises(OSError, match=f"{message}.*--resume"):
            train(recipe, adapter, progress=False)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    train(recipe, adapter, resume=True, progress=False)
    assert student_bytes(whole) == student_bytes(folder)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_student_that_cannot_be_written_is_written_by_resuming(make_recipe, adapter, monkeypatch):
    recipe = make_recipe()
    real = Trainer.write_student

    def write_student(self, folder):
        with files_of_at_most(1000):
            real(self, folder)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"could not write the student: .*--resume"):
        patch.setattr(Trainer, "write_student", write_student)
        train(recipe, adapter, progress=False)
    folder = train(recipe, adapter, resume=True, progress=False)
    assert (folder / "checkpoints/step-000004/student.safetensors").read_bytes() == student_bytes(folder)


@pytest.mark.parametrize("target", ["write_png", "write_tensors"])
def test_a_picture_that_cannot_be_written_is_reported_and_training_continues(
    make_recipe, adapter, monkeypatch, capsys, target
):
    real = getattr(validation, target)

    def limited(*args):
        with files_of_at_most(10):
            real(*args)

    monkeypatch.setattr(validation, target, limited)
    folder = train(make_recipe(validation={"every": 2}), adapter)
    assert (folder / "student" / "student.json").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if "picture" in line]
    assert len(lines) == 2 and all("no picture" in line and "too large" in line for line in lines), lines


def test_broken_pictures_of_the_teacher_are_drawn_again(make_recipe, adapter):
    settings = {"validation": {"every": 2}}
    folder = train(make_recipe(train={"num_updates": 2}, **settings), adapter, progress=False)
    (kept,) = (folder / "validation").glob("teacher-*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    train(make_recipe(train={"num_updates": 4}, **settings), adapter, resume=True, progress=False)
    assert kept.read_bytes() == whole
    assert (folder / "validation" / "step-000004.png").exists()


@pytest.fixture
def untouched(adapter, monkeypatch):
    """An adapter whose weights may not be loaded."""
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    return adapter


def test_a_folder_that_cannot_be_written_is_reported_before_the_model_is_loaded(make_recipe, untouched, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", "/proc/run"):  # root may write nearly anywhere
        recipe = make_recipe(output={"folder": str(place)})
        refused = "output.folder .*file/run must be a folder" if "file" in str(place) else f"write into .*{place}"
        with pytest.raises((ValueError, OSError), match=refused):
            train(recipe, untouched, progress=False)


def test_a_disk_too_small_for_a_checkpoint_is_reported_before_the_model_is_loaded(make_recipe, untouched, monkeypatch):
    recipe = make_recipe(train={"ema_decay": 0.5})
    folder = Path(recipe.output.folder)
    # In fp32: student, fake score, two moments of each, and the moving average.
    size = 4 * 7 * sum(p.numel() for p in TinyNetwork().parameters())
    usage = shutil.disk_usage(folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(OSError, match=r"free, and a checkpoint takes .* make room or choose another output\.folder"):
        train(recipe, untouched, progress=False)
    assert not folder.exists()


def test_a_disk_that_will_be_too_small_is_noted(make_recipe, adapter, monkeypatch, capsys):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    train(make_recipe(checkpoint={"keep": 2}), adapter)
    assert "with checkpoint.keep 2 there will be 3 at a time" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError("no weights"), KeyboardInterrupt()])
def test_a_run_that_fails_before_it_begins_leaves_no_folder(make_recipe, adapter, monkeypatch, tmp_path, error):
    def fail():
        assert folder.is_dir()  # the processes have compared it
        raise error

    monkeypatch.setattr(adapter, "load_network", fail)
    folder = tmp_path / "runs" / "first"
    recipe = make_recipe(output={"folder": str(folder)})
    with pytest.raises(type(error)):
        train(recipe, adapter, progress=False)
    assert not folder.parent.exists()
    with pytest.raises(ValueError, match="cannot read"):
        train(make_recipe(output={"folder": str(folder)}, data={"prompts": "nowhere.txt"}), adapter, progress=False)
    assert not folder.parent.exists()
    folder.parent.mkdir()
    (folder.parent / "notes.txt").touch()
    with pytest.raises(type(error)):
        train(recipe, adapter, progress=False)
    assert [path.name for path in folder.parent.iterdir()] == ["notes.txt"]
