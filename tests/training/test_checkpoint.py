"""Checkpoints: killed and resumed equals uninterrupted, damage is found, nothing half-written is ever read."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from trainers import latest_and_messages, train

from dpdmd.models.student_file import LORA_FILE
from dpdmd.recipe.schema import Recipe, TrainConfig
from dpdmd.recipe.toml import flatten, load_recipe
from dpdmd.store.errors import StoppedBySignal
from dpdmd.store.files import read_json, write_json
from dpdmd.store.jsonl import read_rows
from dpdmd.store.tensors import read_tensors
from dpdmd.training.run import checkpoint as checkpoints
from dpdmd.training.run.checkpoint import latest_checkpoint, save_checkpoint
from dpdmd.training.run.folder import binding_digest
from dpdmd.training.run.signals import StopRequest
from dpdmd.training.trainer import Trainer


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A shell that starts the tests in the background lets them ignore some signals."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


LONG = {"num_updates": 5, "ema_decay": 0.8, "ida_decay": 0.9, "warmup": 3, "accumulation": 2, "weight_decay": 0.01}


class Killed(BaseException):
    """Ends a run as abruptly as a test can."""


def kill_in(monkeypatch, step):
    """Make the iteration after `step` updates die between its fake-score updates and its student update."""
    real = Trainer._student_update

    def dying(self):
        if self.step == step:
            raise Killed
        return real(self)

    monkeypatch.setattr(Trainer, "_student_update", dying)


def weights(folder, step):
    files = sorted((folder / "checkpoints" / f"step-{step:06d}").glob("*.safetensors"))
    assert {"student", "fake_score", "ema", "student_optimizer", "fake_score_optimizer"} <= {
        file.stem for file in files
    }
    return {f"{file.stem}/{key}": t for file in files for key, t in read_tensors(file).items()}


def log_without_seconds(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows], [
        r["seconds"] for r in rows
    ]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("objective", ["dmd", "dp_dmd", "dmd_adversarial"])
def test_killed_and_resumed_equals_uninterrupted(make_recipe, adapter, monkeypatch, killed_at, objective):
    settings = {"name": objective, "adversarial": {"num_real": 6}}
    whole = train(make_recipe("whole", train=LONG, objective=settings), adapter, progress=False)
    recipe = make_recipe("parts", train=LONG, objective=settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, killed_at)
        train(recipe, adapter, progress=False)
    parts = train(recipe, adapter, resume=True, progress=False)
    assert_same(weights(whole, 5), weights(parts, 5))
    assert any(name.startswith("discriminator_optimizer/") for name in weights(whole, 5)) == ("adv" in objective)
    assert_same(
        read_tensors(whole / "student/student.safetensors"), read_tensors(parts / "student/student.safetensors")
    )
    (rows, _), (resumed_rows, seconds) = log_without_seconds(whole), log_without_seconds(parts)
    assert rows == resumed_rows
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("roles", [["student", "fake_score"], ["fake_score"]], ids=["shared", "mixed"])
def test_a_run_with_adapters_resumes_as_well(make_recipe, adapter, monkeypatch, roles):
    own = {} if len(roles) == 2 else {"ida_decay": 1.0}  # it needs both, or neither
    settings = {"train": LONG | own, "lora": {"roles": roles, "rank": 2}}
    whole = train(make_recipe("whole", **settings), adapter, progress=False)
    recipe = make_recipe("parts", **settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, 3)
        train(recipe, adapter, progress=False)
    parts = train(recipe, adapter, resume=True, progress=False)
    assert_same(weights(whole, 5), weights(parts, 5))
    name = "student.safetensors" if roles == ["fake_score"] else LORA_FILE
    assert_same(read_tensors(whole / "student" / name), read_tensors(parts / "student" / name))


def test_a_longer_run_is_the_continuation_of_a_shorter_one(make_recipe, adapter):
    whole = train(make_recipe("whole", train=LONG), adapter, progress=False)
    train(make_recipe("parts", train=LONG | {"num_updates": 3}), adapter, progress=False)
    parts = train(make_recipe("parts", train=LONG), adapter, resume=True, progress=False)
    assert_same(weights(whole, 5), weights(parts, 5))
    sessions = read_json(parts / "provenance.json")["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 3]
    with pytest.raises(ValueError, match="at least the 5 updates that the run has done already, got 3"):
        train(make_recipe("parts", train=LONG | {"num_updates": 3}), adapter, resume=True, progress=False)


def test_resuming_a_finished_run_changes_nothing(make_recipe, adapter):
    recipe = make_recipe(train={"num_updates": 2})
    folder = train(recipe, adapter, progress=False)
    before, log = read_tensors(folder / "student" / "student.safetensors"), (folder / "metrics.jsonl").read_text()
    train(recipe, adapter, resume=True, progress=False)
    assert_same(before, read_tensors(folder / "student" / "student.safetensors"))
    assert log == (folder / "metrics.jsonl").read_text()


def test_resume_with_other_settings_is_refused_naming_them(make_recipe, adapter):
    train(make_recipe(train={"num_updates": 1}), adapter, progress=False)
    changed = make_recipe(train={"num_updates": 1, "weight_decay": 0.5}, objective={"anchor": {"weight": 3.0}})
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        train(changed, adapter, resume=True, progress=False)
    assert "train.weight_decay: the run has 0.0, the recipe 0.5" in str(error.value)
    assert "objective.anchor.weight: the run has 0.05, the recipe 3.0" in str(error.value)
    free = make_recipe(train={"num_updates": 2}, checkpoint={"keep": 1}, validation={"num_seeds": 2})
    assert train(free, adapter, resume=True, progress=False)


def test_a_checkpoint_of_another_recipe_is_refused_without_its_recipe_file(make_recipe, adapter):
    folder = train(make_recipe(train={"num_updates": 1}), adapter, progress=False)
    (folder / "recipe.toml").unlink()
    with pytest.raises(ValueError, match="other settings of the recipe"):
        train(make_recipe(train={"num_updates": 1, "weight_decay": 0.5}), adapter, resume=True, progress=False)


def test_a_changed_learning_rate_is_used_recorded_and_told(make_recipe, adapter, caplog):
    folder = train(make_recipe(train={"num_updates": 1}), adapter, progress=False)
    slower = make_recipe(train={"num_updates": 2, "learning_rate": 0.003, "fake_learning_rate": 0.004})
    with caplog.at_level("INFO", logger="dpdmd"):
        train(slower, adapter, resume=True, progress=False)
    assert "note: train.learning_rate was 0.01 and is now 0.003" in caplog.messages
    assert [row["learning_rate"] for row in read_rows(folder / "metrics.jsonl")] == [0.01, 0.003]
    changed = read_json(folder / "provenance.json")["sessions"][-1]["changed"]
    assert changed["train.learning_rate"] == [0.01, 0.003] and changed["train.fake_learning_rate"] == [None, 0.004]
    assert load_recipe(folder).train.learning_rate == 0.003  # so that the next session goes on with it


def test_a_key_that_a_later_release_adds_binds_a_checkpoint_only_away_from_its_default(make_recipe):
    class LaterTrain(TrainConfig):
        momentum: tuple[float, ...] | None = None
        noise: float = 1.0

    class LaterRecipe(Recipe):
        train: LaterTrain

    recipe = make_recipe()
    train, noisy = recipe.train.model_dump(), {"noise": 1.5}
    later, other = (LaterRecipe.model_validate(dict(recipe) | {"train": train | more}) for more in ({}, noisy))
    before, elsewhere = (binding_digest(flatten(r)) for r in (recipe, make_recipe("elsewhere")))
    now, noisier = (binding_digest(flatten(r), LaterRecipe) for r in (later, other))
    assert now == before == elsewhere
    assert noisier != before


def test_resume_with_other_prompts_in_the_file_is_refused(make_recipe, adapter, prompts_file):
    recipe = make_recipe(train={"num_updates": 1})
    train(recipe, adapter, progress=False)
    prompts_file.write_text("something else\n")
    with pytest.raises(ValueError, match="other prompts"):
        train(recipe, adapter, resume=True, progress=False)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_signal_saves_a_checkpoint_and_then_stops(make_recipe, adapter, monkeypatch, signum, code):
    options = {"train": LONG, "checkpoint": {"every": 0}}
    whole = train(make_recipe("whole", **options), adapter, progress=False)
    real = Trainer._student_update

    def interrupted(self):
        if self.step == 1:
            os.kill(os.getpid(), signum)
            time.sleep(0.01)
        return real(self)

    recipe = make_recipe("parts", **options)
    handler = signal.getsignal(signum)
    with monkeypatch.context() as patch, pytest.raises(StoppedBySignal, match="stopped after step 2") as error:
        patch.setattr(Trainer, "_student_update", interrupted)
        train(recipe, adapter, progress=False)
    assert error.value.exit_code == code
    assert signal.getsignal(signum) == handler
    assert [p.name for p in (tuple((whole.parent / "parts" / "checkpoints").iterdir()))] == ["step-000002"]
    parts = train(recipe, adapter, resume=True, progress=False)
    assert_same(weights(whole, 5), weights(parts, 5))


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(make_recipe, adapter, monkeypatch, signum):
    real = Trainer._student_update

    def interrupted(self):
        os.kill(os.getpid(), signum)
        return real(self)

    monkeypatch.setattr(Trainer, "_student_update", interrupted)
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        folder = train(make_recipe(train={"num_updates": 2}), adapter, progress=False)
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)
    assert len(read_rows(folder / "metrics.jsonl")) == 2


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_training_works_outside_of_the_main_thread(make_recipe, adapter):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(make_recipe(), adapter, progress=False)))
    thread.start()
    thread.join()
    assert (results[0] / "student" / "student.json").exists()


def test_what_a_resumed_run_changes_is_reported_and_recorded(make_recipe, adapter, capsys):
    train(make_recipe(train={"num_updates": 2}), adapter, progress=False)
    longer = make_recipe(train={"num_updates": 3}, checkpoint={"keep": 1}, validation={"prompts": ["a ring"]})
    folder = train(longer, adapter, resume=True)
    assert [line for line in capsys.readouterr().out.splitlines() if " was " in line] == [
        "note: train.num_updates was 2 and is now 3",
        "note: validation.prompts was None and is now ('a ring',)",
        "note: checkpoint.keep was 2 and is now 1",
    ]
    assert load_recipe(folder / "recipe.toml") == longer
    first, second = read_json(folder / "provenance.json")["sessions"]
    assert first["changed"] == {}
    assert second["changed"] == {
        "train.num_updates": [2, 3],
        "validation.prompts": [None, ["a ring"]],
        "checkpoint.keep": [2, 1],
    }


def test_a_run_that_is_not_resumed_leaves_the_recipe_of_the_one_before(make_recipe, adapter):
    folder = train(make_recipe(train={"num_updates": 2}), adapter, progress=False)
    files = [(folder / name).read_text() for name in ("recipe.toml", "provenance.json", "metrics.jsonl")]
    with pytest.raises(ValueError, match="at least the 2 updates"):
        train(make_recipe(train={"num_updates": 1}), adapter, resume=True, progress=False)
    assert files == [(folder / name).read_text() for name in ("recipe.toml", "provenance.json", "metrics.jsonl")]


def test_the_newest_checkpoints_are_kept(make_recipe, adapter):
    folder = train(make_recipe(checkpoint={"every": 1, "keep": 2}), adapter, progress=False)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 10):
        save_checkpoint(folder, {"student": {"w": torch.full((3,), float(step))}}, {"step": step}, keep=3)
    return folder


def test_the_latest_checkpoint_is_the_one_of_most_updates(three):
    latest = latest_checkpoint(three)
    assert latest.step == 10
    assert torch.equal(read_tensors(latest.folder / "student.safetensors")["w"], torch.full((3,), 10.0))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (truncate, "student.safetensors", "has changed"),
        (flip, "student.safetensors", "has changed"),
        (lambda path: path.unlink(), "student.safetensors", "is missing"),
        (lambda path: path.unlink(), "state.json", "state.json is missing or broken"),
        (lambda path: path.write_text("{"), "state.json", "state.json is missing or broken"),
        (lambda path: write_json(path, {"step": 10}), "state.json", "state.json is missing or broken"),
        (lambda path: write_json(path, []), "state.json", "state.json is missing or broken"),
        (lambda path: write_json(path, {"step": 10, "sha256": []}), "state.json", "state.json is missing or broken"),
        (lambda path: write_json(path, {"step": 11, "sha256": {}}), "state.json", "state.json is missing or broken"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(three, damage, name, reason):
    damage(three / "step-000010" / name)
    checkpoint, messages = latest_and_messages(three)
    assert checkpoint.step == 2
    assert len(messages) == 1
    assert reason in messages[0] and messages[0].endswith("trying the one before, step-000002")


def test_nothing_but_damaged_checkpoints_is_an_error_and_none_is_none(three, tmp_path):
    for path in three.iterdir():
        truncate(path / "student.safetensors")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged, step-000001 as well \(student.safet"):
        latest_and_messages(three)
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_one_damaged_checkpoint_is_one_message_that_speaks_of_no_other(tmp_path, caplog):
    path = save_checkpoint(tmp_path, {"student": {"w": torch.zeros(3)}}, {"step": 1}, keep=3)
    (path / "state.json").write_text("{")
    with pytest.raises(ValueError) as error:
        latest_checkpoint(tmp_path)
    assert str(error.value) == (
        f"the only checkpoint, {path}, is damaged (state.json is missing or broken); start again with --overwrite"
    )
    assert not caplog.messages


def test_a_damaged_checkpoint_does_not_push_out_the_one_that_follows_it(three):
    truncate(three / "step-000010" / "student.safetensors")
    assert latest_checkpoint(three).step == 2
    save_checkpoint(three, {"student": {"w": torch.zeros(1)}}, {"step": 3}, keep=1)
    assert [p.name for p in three.iterdir()] == ["step-000003"]


@pytest.mark.parametrize("stage", ["write_tensors", "write_json"])
def test_a_full_disk_leaves_the_older_checkpoints_and_no_half_one(three, monkeypatch, stage):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, stage, full)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*step-000011: No space left on device"):
        save_checkpoint(three, {"student": {"w": torch.zeros(1)}}, {"step": 11}, keep=1)
    assert sorted(p.name for p in three.iterdir()) == ["step-000001", "step-000002", "step-000010"]


def test_what_a_killed_write_left_is_ignored_and_removed(three):
    partial = three / ".step-000011.abcd.tmp"
    partial.mkdir()
    (partial / "student.safetensors").write_bytes(b"half")
    assert latest_checkpoint(three).step == 10
    save_checkpoint(three, {}, {"step": 12}, keep=5)
    assert not partial.exists()
