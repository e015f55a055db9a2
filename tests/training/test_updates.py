"""One update: gradient routing, accumulation, clipping, warm-up, and the stop before a step that is not finite."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from trainers import new_trainer

from dpdmd.method.denoiser import concatenate
from dpdmd.method.objective import Objective
from dpdmd.recipe.objective_keys import ObjectiveConfig
from dpdmd.recipe.objectives import SHIPPED, ObjectiveSetting
from dpdmd.recipe.resolve import resolve
from dpdmd.training.data import MicroBatch
from dpdmd.training.updater import rate_factor
from dpdmd.training.updates import MicroLoss, draw_samples, fake_score_loss, student_loss


def gradients(trainer, role):
    return [p.grad for p in trainer.network(role).parameters()]


def gradient_reaches_step(trainer, objective, index):
    """Whether the student's loss depends on what student step `index` predicts."""
    reached, calls = [], 0
    student = trainer.denoisers.student

    def marked(x_t, t, cond):
        nonlocal calls
        prediction = student(x_t, t, cond)
        if calls == index and prediction.x0.requires_grad:
            prediction.x0.register_hook(lambda grad: reached.append(bool(grad.abs().sum() > 0)))
        calls += 1
        return prediction

    denoisers = replace(trainer.denoisers, student=marked)
    loss_of(trainer, trainer.batches.micro_batch("student", 0, 0), objective, denoisers).total.backward()
    return any(reached)


def loss_of(trainer, batch, objective, denoisers=None):
    """The student's loss with another objective than the recipe's."""
    return student_loss(denoisers or trainer.denoisers, replace(trainer.plan, objective=objective), batch)


def objective_of(trainer, name):
    plan = trainer.plan
    return SHIPPED[name](
        ObjectiveSetting(
            keys=ObjectiveConfig(name=name),
            path=plan.path,
            prediction_space=plan.prediction_space,
            student_grid=plan.student.grid,
            teacher_grid=plan.teacher.grid,
            guidance=replace(plan.teacher.guidance, scale=2.0),
        )
    )


def test_dmd_reaches_step_one_and_dp_dmds_dmd_term_does_not(make_recipe, adapter):
    trainer = new_trainer(make_recipe(), adapter)
    trainer.iterate()  # at the start fake and teacher differ by guidance only; after an update by more
    dmd, dp_dmd = objective_of(trainer, "dmd"), objective_of(trainer, "dp_dmd")
    only_dmd_term = Objective(terms=dp_dmd.terms[:1], detach_first=True)
    only_anchor = Objective(terms=dp_dmd.terms[1:], detach_first=True)
    reach = lambda objective: [gradient_reaches_step(trainer, objective, i) for i in range(3)]  # noqa: E731
    assert reach(dmd) == [True, True, True]
    assert reach(only_dmd_term) == [False, True, True]
    assert reach(only_anchor) == [True, False, False]


def test_each_loss_gives_gradient_to_its_role_only(make_recipe, adapter):
    trainer = new_trainer(make_recipe(), adapter)
    batch = trainer.batches.micro_batch("fake_score", 0, 0)
    samples = draw_samples(trainer.denoisers.student, trainer.plan, batch)
    fake_score_loss(trainer.denoisers, trainer.plan, batch, samples).total.backward()
    assert all(g is not None for g in gradients(trainer, "fake_score"))
    assert all(g is None for g in gradients(trainer, "student") + gradients(trainer, "teacher"))
    trainer = new_trainer(make_recipe(), adapter)
    student_loss(trainer.denoisers, trainer.plan, trainer.batches.micro_batch("student", 0, 0)).total.backward()
    assert all(g is not None for g in gradients(trainer, "student"))
    assert all(g is None for g in gradients(trainer, "fake_score") + gradients(trainer, "teacher"))


def test_fake_score_learns_the_students_samples(make_recipe, adapter):
    trainer = new_trainer(make_recipe(), adapter)
    batch = trainer.batches.micro_batch("fake_score", 0, 0)
    samples = draw_samples(trainer.denoisers.student, trainer.plan, batch)
    micro_losses = [partial(fake_score_loss, trainer.denoisers, trainer.plan, batch, samples)]
    updater = trainer.updaters["fake_score"]
    losses = [updater.update(0, micro_losses)["loss/fake_score"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def split(batch, parts):
    size = len(batch.noise) // parts
    rows = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return [
        MicroBatch(batch.prompts[r], batch.noise[r], batch.cond[r], batch.uncond[r], batch.rng, batch.levels[r])
        for r in rows
    ]


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_micro_batches_give_the_gradient_of_one_batch(make_recipe, adapter, parts):
    trainer = new_trainer(make_recipe(train={"batch_size": 8}), adapter)
    trainer.iterate()
    batch = trainer.batches.micro_batch("student", 1, 0)
    # The anchor draws nothing at random, so that a part of the batch is that part of the whole.
    objective = Objective(terms=objective_of(trainer, "dp_dmd").terms[1:], detach_first=True)
    updater = trainer.updaters["student"]
    stepped = []
    updater.optimizer.step = lambda: stepped.append([p.grad.clone() for p in updater.parameters if p.grad is not None])
    for batches in ([batch], split(batch, parts)):
        log = updater.update(1, [partial(loss_of, trainer, b, objective) for b in batches])
        stepped[-1].append(torch.tensor([log["grad_norm/student"], log["loss/anchor"]]))
    for whole, accumulated in zip(*stepped, strict=True):
        # Sums in another order differ by rounding.
        torch.testing.assert_close(accumulated, whole, atol=1e-6, rtol=1e-5)


def test_a_gradient_is_clipped_by_its_global_norm(make_recipe, adapter):
    trainer = new_trainer(make_recipe(train={"max_grad_norm": 1e-3}), adapter)
    updater = trainer.updaters["student"]
    seen = []
    updater.optimizer.step = lambda: seen.append(torch.cat([p.grad.flatten() for p in updater.parameters]).norm())
    batch = trainer.batches.micro_batch("student", 0, 0)
    log = updater.update(0, [partial(student_loss, trainer.denoisers, trainer.plan, batch)])
    assert log["grad_norm/student"] > 1e-3
    torch.testing.assert_close(seen[0], torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("role", ["student", "fake_score"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(make_recipe, adapter, role, value):
    trainer = new_trainer(make_recipe(), adapter)
    trainer.iterate()
    updater, network = trainer.updaters[role], trainer.network(role)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def broken():
        total = value * sum(p.sum() for p in network.parameters())
        return MicroLoss(total, {"loss/some": total.detach()})

    with pytest.raises(
        FloatingPointError, match=rf"the {role} update of step 8 is not finite \(loss/some = .*Try a lower"
    ):
        updater.update(7, [broken])
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())


def test_a_gradient_that_is_not_finite_stops_although_the_loss_is_finite(make_recipe, adapter):
    trainer = new_trainer(make_recipe(), adapter)
    updater, network = trainer.updaters["student"], trainer.network("student")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def broken():
        total = sum((p * 0).abs().sqrt().sum() for p in network.parameters())  # d sqrt at 0 is infinite
        return MicroLoss(total, {"loss/some": total.detach()})

    with pytest.raises(FloatingPointError, match="grad_norm/student = "):
        updater.update(0, [broken])
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533906, 0.5, 0.1464466094]),
    ],
)
def test_rates_rise_over_the_warm_up_and_then_follow_the_schedule_to_zero(schedule, expected, make_recipe, adapter):
    recipe = make_recipe(train={"warmup": 2, "schedule": schedule, "num_updates": 6})
    plan = resolve(recipe, adapter).optimiser
    assert [rate_factor(step, plan) for step in range(6)] == pytest.approx(expected)
    assert rate_factor(6, plan) == pytest.approx(1.0 if schedule == "constant" else 0.0)
    assert rate_factor(0, replace(plan, warmup=0)) == 1.0


def test_warm_up_reaches_the_optimiser(make_recipe, adapter):
    trainer = new_trainer(make_recipe(train={"warmup": 2, "learning_rate": 1e-2, "fake_learning_rate": 4e-2}), adapter)
    assert [trainer.iterate()["learning_rate"] for _ in range(3)] == [5e-3, 1e-2, 1e-2]
    trainer = new_trainer(make_recipe(train={"warmup": 2, "fake_learning_rate": 4e-2}), adapter)
    trainer.iterate()
    assert trainer.updaters["fake_score"].optimizer.param_groups[0]["lr"] == 2e-2


def test_concatenated_parts_are_the_batch(make_recipe, adapter):
    batch = new_trainer(make_recipe(train={"batch_size": 8}), adapter).batches.micro_batch("student", 0, 0)
    again = concatenate([part.cond for part in split(batch, 4)])
    assert torch.equal(again.tensors["embeds"], batch.cond.tensors["embeds"])


def noisy_samples_of_fake_updates(trainer, recorder):
    """What the fake score is trained on in one iteration, and the noises of the rollouts without graph."""
    spy = recorder(trainer.denoisers.fake_score)
    rollouts = recorder(trainer.denoisers.student)
    trainer.denoisers = replace(trainer.denoisers, fake_score=spy, student=rollouts)
    trainer.iterate()
    shown = [call for call, graph in zip(spy.calls, spy.grad_enabled, strict=True) if graph]
    noises = [
        x_t for (x_t, t, _), graph in zip(rollouts.calls, rollouts.grad_enabled, strict=True) if not graph and t[0] == 1
    ]
    return shown, noises


@pytest.mark.parametrize(("reuse", "num_rollouts"), [(False, 3), (True, 1), ("student", 0)])
def test_fake_updates_draw_as_many_samples_as_the_recipe_says_and_never_share_noise_levels(
    make_recipe, adapter, recorder, reuse, num_rollouts
):
    trainer = new_trainer(make_recipe(train={"fake_updates": 3, "reuse_samples": reuse}), adapter)
    shown, noises = noisy_samples_of_fake_updates(trainer, recorder)
    assert len(shown) == 3 and len(noises) == num_rollouts
    assert len({tuple(t.tolist()) for _, t, _ in shown}) == 3
    prompts = {tuple(cond.tensors["embeds"].flatten().tolist()) for _, _, cond in shown}
    assert len(prompts) == max(num_rollouts, 1)


def test_the_fake_score_learns_the_samples_of_the_student_update_before_it(make_recipe, adapter, monkeypatch):
    """Sample by sample and with their own prompts, in every micro-batch; they are those of the student before it."""
    trainer = new_trainer(
        make_recipe(train={"accumulation": 2, "fake_updates": 2, "reuse_samples": "student"}), adapter
    )
    batches = [trainer.batches.micro_batch("student", 0, index) for index in range(2)]
    expected = [draw_samples(trainer.denoisers.student, trainer.plan, batch) for batch in batches]
    seen = []

    def recorded(denoisers, plan, batch, x0, *, stream):
        seen.append((batch.prompts, x0, stream))
        return fake_score_loss(denoisers, plan, batch, x0, stream=stream)

    monkeypatch.setattr("dpdmd.training.trainer.fake_score_loss", recorded)
    trainer.iterate()
    assert [prompts for prompts, _, _ in seen] == 2 * [batch.prompts for batch in batches]
    assert [stream for _, _, stream in seen] == 2 * ["denoising_0"] + 2 * ["denoising_1"]
    for (_, x0, _), drawn in zip(seen, 2 * expected, strict=True):
        assert torch.allclose(x0, drawn, atol=1e-6) and not x0.requires_grad


def test_samples_of_one_prompt_stand_together_and_differ_in_noise(make_recipe, adapter):
    trainer = new_trainer(make_recipe(train={"batch_size": 6}, data={"samples_per_prompt": 3}), adapter)
    batch = trainer.batches.micro_batch("student", 0, 0)
    assert batch.prompts[0] == batch.prompts[1] == batch.prompts[2] != batch.prompts[3]
    assert len({tuple(noise.flatten().tolist()) for noise in batch.noise}) == 6
    following = trainer.batches.micro_batch("student", 1, 0).prompts
    passed = [*batch.prompts[::3], *following[::3]]
    alone = new_trainer(make_recipe(train={"batch_size": 4}), adapter).batches.micro_batch("student", 0, 0)
    assert passed == alone.prompts
