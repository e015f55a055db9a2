"""The training loop: who changes, from which draws, in which order, and what is written."""

import json

import pytest
import torch
from trainers import new_trainer, train

from dpdmd.store.files import read_json
from dpdmd.store.jsonl import read_rows
from dpdmd.store.png import read_png
from dpdmd.store.tensors import read_tensors
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation.picture import text_strip

LOG_KEYS = {
    "step",
    "seconds",
    "loss/dmd",
    "loss/anchor",
    "loss/fake_score",
    "grad_norm/student",
    "grad_norm/fake_score",
    "health/cosine",
    "health/relative_gap",
    "health/magnitude_ratio",
    "sample/mean",
    "sample/std",
    "sample/saturation",
    "learning_rate",
}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("objective", ["dmd", "dp_dmd"])
def test_every_parameter_of_student_and_fake_changes_and_none_of_the_teacher(make_recipe, adapter, objective):
    trainer = new_trainer(make_recipe(objective={"name": objective}), adapter)
    start = snapshot(trainer.network("teacher"))
    trainer.iterate()
    for role in ("student", "fake_score"):
        for name, parameter in trainer.network(role).named_parameters():
            assert not torch.equal(parameter, start[name]), (role, name)
    for name, parameter in trainer.network("teacher").named_parameters():
        assert torch.equal(parameter, start[name]), name
        assert parameter.grad is None


def test_each_iteration_is_m_fake_updates_then_one_student_update(make_recipe, adapter, monkeypatch):
    trainer = new_trainer(make_recipe(train={"fake_updates": 3, "num_updates": 2}), adapter)
    order = []
    for role, updater in trainer.updaters.items():
        step = updater.optimizer.step
        monkeypatch.setattr(updater.optimizer, "step", lambda role=role, step=step: (order.append(role), step()))
    trainer.iterate()
    trainer.iterate()
    assert order == 2 * (3 * ["fake_score"] + ["student"])


def test_dmd_and_dp_dmd_train_on_the_same_prompts_and_noise(make_recipe, adapter, monkeypatch):
    draws = {}
    for objective in ("dmd", "dp_dmd"):
        trainer = new_trainer(make_recipe(objective={"name": objective}, train={"reuse_samples": False}), adapter)
        draws[objective] = []
        micro_batch = type(trainer.batches).micro_batch

        def recorded(self, *args, _seen=draws[objective], _real=micro_batch, **options):
            batch = _real(self, *args, **options)
            _seen.append((batch.prompts, batch.noise, torch.rand(2, generator=batch.rng("dmd"))))
            return batch

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer.batches), "micro_batch", recorded)
            trainer.iterate()
    assert len(draws["dmd"]) == len(draws["dp_dmd"]) == 3
    for a, b in zip(draws["dmd"], draws["dp_dmd"], strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_fake_score_learning_rate_is_the_students_unless_given(make_recipe, adapter):
    same = new_trainer(make_recipe(), adapter)
    other = new_trainer(make_recipe(train={"fake_learning_rate": 5e-3}), adapter)
    assert [same.updaters[role].peak for role in ("student", "fake_score")] == [1e-2, 1e-2]
    assert [other.updaters[role].peak for role in ("student", "fake_score")] == [1e-2, 5e-3]


def test_a_run_writes_log_student_and_provenance(make_recipe, adapter):
    folder = train(make_recipe(), adapter, progress=False)
    log = rows(folder)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all(set(row) == LOG_KEYS for row in log)
    assert log[0]["seconds"] < log[-1]["seconds"]
    info = read_json(folder / "student" / "student.json")
    grid = adapter.uniform_grid(3)
    assert info["grid"] == list(grid.times)
    assert (info["base"], info["num_inference_steps"], info["guidance_scale"]) == ("tiny", 3, 1.0)
    assert (info["objective"], info["updates"]) == ("dp_dmd", 4)
    assert info["peak_memory_bytes"] > 2**20
    provenance = read_json(folder / "provenance.json")
    assert provenance["grid"] == list(grid.times)
    assert provenance["sessions"][0]["versions"]["torch"] == torch.__version__
    adapter.load_network().load_state_dict(read_tensors(folder / "student" / "student.safetensors"))


def test_the_same_seed_gives_the_same_student_and_another_seed_another(make_recipe, adapter):
    students = [
        read_tensors(
            train(make_recipe(f"run{i}", train={"seed": seed}), adapter, progress=False) / "student/student.safetensors"
        )
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])
    assert not any(torch.equal(students[0][name], students[2][name]) for name in students[0])


def test_the_written_student_has_the_averaged_weights(make_recipe, adapter):
    recipe = make_recipe(train={"ema_decay": 0.5, "num_updates": 2})
    trainer = new_trainer(recipe, adapter)
    expected = snapshot(trainer.network("student"))
    for _ in range(2):
        trainer.iterate()
        own = snapshot(trainer.network("student"))
        expected = {name: 0.5 * expected[name] + 0.5 * own[name] for name in own}
    written = read_tensors(train(recipe, adapter, progress=False) / "student" / "student.safetensors")
    for name in own:
        torch.testing.assert_close(written[name], expected[name])
        assert not torch.equal(written[name], own[name])


def test_validation_pictures_show_teacher_above_student_and_cost_no_training_seconds(make_recipe, adapter, monkeypatch):
    calls = []
    real = Trainer.draw_validation
    monkeypatch.setattr(
        Trainer,
        "draw_validation",
        lambda self, folder: (calls.append(self.seconds), real(self, folder), calls.append(self.seconds))[1],
    )
    recipe = make_recipe(validation={"every": 2, "num_seeds": 3, "prompts": ("a red circle", "a ring")})
    folder = train(recipe, adapter, progress=False)
    assert calls[0] == calls[1] and calls[2] == calls[3]
    names = sorted(path.name for path in (folder / "validation").glob("*.png"))
    assert names == ["step-000002.png", "step-000004.png"]
    first, second = (read_png(folder / "validation" / name) for name in names)
    strip = text_strip("a red circle", 3 * 98)
    text = strip.shape[1]
    assert torch.equal(first[:, :text], strip)
    assert first.shape == (3, 2 * (text + 2 * 98), 3 * 98)  # images of 8 pixels, 12 times as large, and frames
    # The teacher's rows stay, the student's move.
    for top in (0, text + 2 * 98):
        assert torch.equal(first[:, top : top + text + 98], second[:, top : top + text + 98])
        assert not torch.equal(first[:, top + text + 98 :][:, :98], second[:, top + text + 98 :][:, :98])
    assert (folder / "validation/prompts.txt").read_text() == "a red circle\na ring\n"
    assert len(list((folder / "validation").glob("teacher-*.safetensors"))) == 1


def test_the_last_student_is_validated_too_unless_the_run_is_shorter_than_the_interval(make_recipe, adapter):
    def looked_at(**options) -> list[int]:
        folder = train(make_recipe(validation={"every": 3}, **options), adapter, resume=True, progress=False)
        return [row["step"] for row in read_rows(folder / "validation/scores.jsonl")]

    assert looked_at(train={"num_updates": 2}) == []
    assert looked_at(train={"num_updates": 4}) == [3, 4]
    assert looked_at(train={"num_updates": 4}) == [3, 4]  # a finished run is not looked at again
    assert looked_at(train={"num_updates": 6}) == [3, 4, 6]


def test_validation_does_not_change_what_is_trained(make_recipe, adapter):
    train_options = {"ema_decay": 0.9}
    plain = train(make_recipe("plain", train=train_options), adapter, progress=False)
    drawn = train(make_recipe("drawn", train=train_options, validation={"every": 1}), adapter, progress=False)
    a, b = (read_tensors(folder / "student" / "student.safetensors") for folder in (plain, drawn))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_with_a_run_is_refused_unless_resumed_or_overwritten(make_recipe, adapter):
    recipe = make_recipe(train={"num_updates": 1})
    folder = train(recipe, adapter, progress=False)
    with pytest.raises(ValueError, match="already holds a run: go on with it by --resume"):
        train(recipe, adapter, progress=False)
    other_file = folder / "notes.txt"
    other_file.write_text("mine")
    train(make_recipe(train={"num_updates": 2}), adapter, overwrite=True, progress=False)
    assert [row["step"] for row in rows(folder)] == [1, 2]
    assert other_file.exists()
    with pytest.raises(ValueError, match="not both"):
        train(recipe, adapter, resume=True, overwrite=True, progress=False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"anchor": {"steps": 8}}}, "anchor.steps must be below the teacher's 8 steps, got 8"),
        ({"model": {"teacher": "tiny", "height": 7, "width": 8}}, "height must be divisible by 2, got 7"),
        ({"data": {"prompts": "/nowhere.txt"}}, "cannot read /nowhere.txt"),
    ],
)
def test_impossible_settings_fail_before_a_network_is_loaded(make_recipe, adapter, monkeypatch, sections, message):
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    recipe = make_recipe(**sections)
    with pytest.raises(ValueError, match=message):
        train(recipe, adapter, progress=False)
    assert not RunFolder(recipe.output.folder).has_run()


def test_lint_messages_are_shown_and_saved(make_recipe, adapter, capsys):
    recipe = make_recipe(
        student={"num_steps": 2, "grid": "stock"}, train={"num_updates": 1}, objective={"anchor": {"steps": 1}}
    )
    folder = train(recipe, adapter)
    messages = read_json(folder / "provenance.json")["lint"]
    assert any("the anchor is the teacher's step 1," in message for message in messages)
    assert all(f"note: {message}" in capsys.readouterr().out for message in messages[:1])


def test_bf16_keeps_weights_and_predictions_in_fp32(make_recipe, adapter):
    trainer = new_trainer(make_recipe(train={"precision": "bf16"}), adapter)
    exact = new_trainer(make_recipe(), adapter)
    batch = trainer.batches.micro_batch("student", 0, 0)
    t = trainer.plan.student.grid.time(0, batch.noise)
    low = trainer.denoisers.student(batch.noise, t, batch.cond)
    high = exact.denoisers.student(batch.noise, t, batch.cond)
    assert low.x0.dtype == torch.float32
    # bf16 keeps 8 bits: equal to about one part in a hundred, and not exactly.
    torch.testing.assert_close(low.x0, high.x0, atol=0.05, rtol=0.02)
    assert not torch.equal(low.x0, high.x0)
    trainer.iterate()
    assert all(p.dtype == torch.float32 for p in trainer.network("student").parameters())


@pytest.mark.parametrize("lora", [{}, {"roles": ["student", "fake_score"], "rank": 4}], ids=["copies", "shared"])
def test_bf16_training_at_a_small_learning_rate_moves_weights_as_fp32_does(make_recipe, adapter, lora):
    """bf16 weights would round most updates of 1e-5 away: their spacing at .3 is 1e-3."""
    moves = {}
    for precision in ("fp32", "bf16"):
        options = {"precision": precision, "learning_rate": 1e-5, "num_updates": 20, "batch_size": 16}
        trainer = new_trainer(make_recipe(train=options, lora=lora), adapter)
        start = {name: p.detach().clone() for name, p in trainer.roles.parameters("student").items()}
        for _ in range(20):
            trainer.iterate()
        now = trainer.roles.parameters("student")
        moves[precision] = torch.cat([(now[name] - old).flatten() for name, old in start.items()])
    exact, low = moves["fp32"], moves["bf16"]
    assert low.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)
    assert torch.cosine_similarity(low, exact, dim=0) > 0.9
