"""Trackers receive what is in `metrics.jsonl` and in the validation folder, once, and are always closed."""

import io
import json
import os
import signal
import struct
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from processes import in_processes, train_tiny
from trainers import train

from dpdmd.recipe.toml import flatten
from dpdmd.store.errors import StoppedBySignal
from dpdmd.store.files import read_json
from dpdmd.store.jsonl import read_rows
from dpdmd.store.tensors import read_tensors
from dpdmd.training import loop
from dpdmd.training.run import trackers
from dpdmd.training.run.trackers import flat_settings
from dpdmd.training.trainer import Trainer

BOTH = pytest.mark.parametrize("name", ["tensorboard", "wandb"])


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def wandb_of_its_own(monkeypatch, tmp_path):
    """Neither login nor folders of the user; wandb reads the environment once, so it is restarted after every test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def logged(folder, name):
    """Settings, [(step, {key: value})] of the scalars and {step: pixels} of the pictures, as the tracker has them."""
    return {"tensorboard": in_tensorboard, "wandb": in_wandb}[name](folder / name)


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    hparams = parse_session_start_info_plugin_data(events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]).hparams
    settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in hparams.items()}
    rows = {}
    for key in events.Tags()["scalars"]:
        for event in events.Scalars(key):
            assert key not in rows.setdefault(event.step, {}), (key, event.step)
            rows[event.step][key] = event.value
    pictures = {}
    for key in events.Tags()["images"]:
        pictures |= {event.step: pixels_of(event.encoded_image_string) for event in events.Images(key)}
    return settings, list(rows.items()), pictures


def in_wandb(folder):
    settings, rows, pictures = {}, [], {}
    for session in wandb_sessions(folder):
        for record in wandb_records(session):
            settings |= {update.key: json.loads(update.value_json) for update in record.config.update}
            if record.HasField("history"):
                step = record.history.step.num
                items = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                for file in items.get("validation/filenames", []):
                    pictures[step] = pixels_of((session / "files" / file).read_bytes())
                parts = ("_type", "filenames", "format", "width", "height", "count")
                of_picture = [f"validation/{part}" for part in parts]
                rows.append((step, {k: v for k, v in items.items() if k[0] != "_" and k not in of_picture}))
    return settings, rows, pictures


def wandb_sessions(folder):
    return sorted(folder.glob("offline-run-*"))


def wandb_records(session):
    """What an offline session wrote: 7 bytes of wandb's own, then a LevelDB log of protocol buffers."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits until all is written
    (file,) = session.glob("*.wandb")
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if 32768 - position % 32768 < 7 or kind == 0:
            position += 32768 - position % 32768  # the rest of a block that nothing fits into
            continue
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, last part
            yield Record.FromString(record)
            record = b""


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def sessions_of(folder, name):
    """Names of what each session has written; at wandb without its time, which leaves the run's id."""
    if name == "tensorboard":
        return {path.name for path in (folder / name).glob("*tfevents*")}
    return {path.name.rpartition("-")[2] for path in wandb_sessions(folder / name)}


def kill_after(patch, step):
    """Let a run die when `step` updates are done and logged."""
    real = Trainer.iterate

    def iterate(self):
        if self.step == step:
            raise Killed
        return real(self)

    patch.setattr(Trainer, "iterate", iterate)


def assert_as_in_the_folder(folder, name):
    """The tracker has the rows of metrics.jsonl, each once and in order, and pictures and scores of validation."""
    _, rows, pictures = logged(folder, name)
    expected = read_rows(folder / "metrics.jsonl")
    scores = {row["step"]: row for row in read_rows(folder / "validation/scores.jsonl")}
    for row in expected:
        row |= {key: v for key, v in scores.get(row["step"], {}).items() if key.startswith("validation/")}
    assert [step for step, _ in rows] == [row["step"] for row in expected]
    for (_, values), row in zip(rows, expected, strict=True):
        assert values.keys() == row.keys() - {"step"}
        for key, value in values.items():
            # What wandb received about an update before the kill stays; the repeated update takes other seconds.
            if name != "wandb" or not key.endswith("seconds"):
                assert value == pytest.approx(row[key], rel=1e-6), key  # tensorboard keeps fp32
    files = {int(path.stem.removeprefix("step-")): path for path in (folder / "validation").glob("*.png")}
    assert pictures.keys() == files.keys()
    for step, path in files.items():
        assert np.array_equal(pictures[step], pixels_of(path.read_bytes()))


@BOTH
def test_a_tracker_has_the_rows_the_pictures_and_the_settings(make_recipe, adapter, name):
    pytest.importorskip(name)
    recipe = make_recipe(validation={"every": 2, "num_seeds": 2}, output={"trackers": [name]})
    folder = train(recipe, adapter, progress=False)
    assert_as_in_the_folder(folder, name)
    settings, rows, pictures = logged(folder, name)
    assert len(rows) == 4 and len(pictures) == 2
    assert settings == flat_settings(flatten(recipe))
    assert settings["train.learning_rate"] == 1e-2 and settings["objective.name"] == "dp_dmd"
    if name == "tensorboard":
        assert not [path for path in (folder / name).iterdir() if path.is_dir()]  # one run in the list of runs


@BOTH
def test_a_run_killed_twice_and_resumed_is_in_the_tracker_once(make_recipe, adapter, monkeypatch, name):
    """Killed after update 5 and then after update 4; it resumes from the checkpoint of update 3."""
    pytest.importorskip(name)
    sections = {"train": {"num_updates": 6}, "checkpoint": {"every": 3}, "validation": {"every": 1}}
    recipe = make_recipe(output={"trackers": [name]}, **sections)
    for killed_after in (5, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, killed_after)
            train(recipe, adapter, resume=killed_after == 4, progress=False)
        if name == "wandb":
            time.sleep(1)  # a session is called by its second
    folder = train(recipe, adapter, resume=True, progress=False)
    assert_as_in_the_folder(folder, name)
    if name == "wandb":
        runs = [record.run for path in wandb_sessions(folder / name) for record in wandb_records(path)]
        ids = [run.run_id for run in runs if run.run_id]
        assert ids == 3 * [read_json(folder / "wandb" / "run.json")["id"]]


@BOTH
def test_an_overwritten_run_leaves_nothing_in_the_tracker(make_recipe, adapter, name):
    pytest.importorskip(name)
    recipe = make_recipe(output={"trackers": [name]}, validation={"every": 1})
    folder = train(recipe, adapter, progress=False)
    before = sessions_of(folder, name)
    shorter = make_recipe(output={"trackers": [name]}, train={"num_updates": 2})
    train(shorter, adapter, overwrite=True, progress=False)
    assert_as_in_the_folder(folder, name)
    assert len(sessions_of(folder, name)) == 1 and not before & sessions_of(folder, name)


@BOTH
def test_a_run_that_is_resumed_with_a_tracker_is_in_it_from_the_checkpoint_on(make_recipe, adapter, monkeypatch, name):
    pytest.importorskip(name)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3)
        train(make_recipe(), adapter, progress=False)
    folder = train(make_recipe(output={"trackers": [name]}), adapter, resume=True, progress=False)
    _, rows, _ = logged(folder, name)
    assert [step for step, _ in rows] == [3, 4]


@BOTH
def test_a_tracker_does_not_change_what_is_trained(make_recipe, adapter, name):
    pytest.importorskip(name)
    plain = train(make_recipe("plain"), adapter, progress=False)
    tracked = train(make_recipe("tracked", output={"trackers": [name]}), adapter, progress=False)
    a, b = (read_tensors(folder / "student" / "student.safetensors") for folder in (plain, tracked))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not (plain / name).exists()


def test_a_tracker_that_is_not_installed_is_refused_before_a_network_is_loaded(make_recipe, adapter, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(trackers, "version", version)
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    recipe = make_recipe(output={"trackers": ["wandb"]})
    with pytest.raises(ValueError, match=r'names wandb, which is not installed: pip install "dpdmd\[wandb\]"'):
        train(recipe, adapter, progress=False)
    assert not os.path.exists(recipe.output.folder)


def test_wandb_without_a_login_is_refused_before_a_network_is_loaded(make_recipe, adapter, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    recipe = make_recipe(output={"trackers": ["wandb"]})
    with pytest.raises(ValueError, match="Without a login, set WANDB_MODE=offline"):
        train(recipe, adapter, progress=False)
    assert not os.path.exists(recipe.output.folder)


def stopped(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return {"step": 1, "learning_rate": 1e-3}


def not_finite(self):
    raise FloatingPointError("the loss is nan")


ENDINGS = pytest.mark.parametrize(
    ("iterate", "error", "exit_code"),
    [(None, None, 0), (stopped, StoppedBySignal, 143), (not_finite, FloatingPointError, 1)],
    ids=["end", "SIGTERM", "NaN"],
)


def train_to(iterate, error, recipe, adapter, monkeypatch):
    if error is None:
        train(recipe, adapter, progress=False)
    else:
        monkeypatch.setattr(Trainer, "iterate", iterate)
        with pytest.raises(error):
            train(recipe, adapter, progress=False)


@ENDINGS
def test_trackers_are_closed_on_every_way_out(make_recipe, adapter, monkeypatch, iterate, error, exit_code):
    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker, finished = "recorder", False, None, 0

        def finish(self):
            self.finished += 1

    recorder = Recorder()
    monkeypatch.setitem(trackers._START, "tensorboard", lambda *arguments: (recorder, 0))
    monkeypatch.setattr(loop, "require_trackers", lambda names: None)
    train_to(iterate, error, make_recipe(output={"trackers": ["tensorboard"]}), adapter, monkeypatch)
    assert recorder.finished == 1


@ENDINGS
def test_wandb_records_how_a_run_ended(make_recipe, adapter, monkeypatch, iterate, error, exit_code):
    pytest.importorskip("wandb")
    recipe = make_recipe(output={"trackers": ["wandb"]})
    train_to(iterate, error, recipe, adapter, monkeypatch)
    (session,) = wandb_sessions(Path(recipe.output.folder, "wandb"))
    (exit_record,) = [record.exit for record in wandb_records(session) if record.HasField("exit")]
    assert exit_record.exit_code == exit_code


@pytest.mark.slow
@BOTH
def test_of_two_processes_one_logs(make_recipe, name):
    pytest.importorskip(name)
    recipe = make_recipe(output={"trackers": [name]}, validation={"every": 2})
    in_processes(train_tiny, recipe)
    folder = Path(recipe.output.folder)
    assert_as_in_the_folder(folder, name)
    assert len(sessions_of(folder, name)) == 1
