from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from rollouts import teacher_rollout
from torch.testing import assert_close

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath, Prediction, VPPath
from dpdmd.method.terms.anchor import DiversityAnchor

VP = VPPath(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod)
STUDENT_GRID, TEACHER_GRID = uniform_grid(4, shift=3), Grid((1.0, 0.95, 0.85, 0.6, 0.3, 0.0))


@pytest.fixture
def anchored_step(student_step):
    """A micro-batch whose rollout is cut after step 1."""
    return partial(student_step, detach_first=True)


@pytest.mark.parametrize("target", ["secant", "x0"])
def test_the_anchor_trains_the_first_step_of_the_student_and_no_other_role(
    target, stepwise_network, recorder, micro_batch, anchored_step
):
    student, teacher, fake = (stepwise_network(STUDENT_GRID.times, seed) for seed in range(3))
    spy = recorder(fake)
    step = anchored_step(student, teacher, spy, **micro_batch)
    DiversityAnchor(guidance=Guidance(3.0), num_steps=2, weight=0.05, target=target)(step).loss.backward()
    assert student.steps_with_gradient() == [True, False, False, False]
    assert teacher.steps_with_gradient() == [False] * 4 and spy.calls == []


def test_an_anchor_that_is_not_past_the_students_start_is_refused(stepwise_network, micro_batch, anchored_step):
    late = Grid((0.95, 0.5, 0.0))
    step = anchored_step(stepwise_network(STUDENT_GRID.times), None, None, **micro_batch)
    anchor = DiversityAnchor(guidance=Guidance(3.0), num_steps=1)
    with pytest.raises(ValueError, match=r"the anchor is at t = 0\.95, and the student starts at 0\.95"):
        anchor(replace(step, student_grid=late))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_anchor_is_the_mean_guided_velocity_over_its_teacher_steps(
    num_steps, stepwise_network, exact_gaussian, micro_batch, anchored_step
):
    student = stepwise_network(STUDENT_GRID.times)
    step = anchored_step(student, exact_gaussian(FlowPath(), 0.5), None, **micro_batch)
    result = DiversityAnchor(guidance=Guidance(3.0), num_steps=num_steps, weight=0.05)(step)
    first = step.rollout.first
    by_x0, by_eps = torch.autograd.grad(result.loss, (first.x0, first.eps))

    # Euler by hand for the Gaussian whose mean is the guided one: velocity = (x - x0) / t.
    z_0 = micro_batch["noise"].double().numpy()
    cond, uncond = (micro_batch[name].tensors["mean"].numpy().reshape(4, 1, 1, 1) for name in ("cond", "uncond"))
    mean, z = uncond + 3 * (cond - uncond), z_0
    for t, s in zip(TEACHER_GRID.times[:num_steps], TEACHER_GRID.times[1:], strict=False):
        x0 = mean + (1 - t) * 0.25 * (z - (1 - t) * mean) / ((1 - t) ** 2 * 0.25 + t**2)
        z = z + (s - t) * (z - x0) / t
    v_star = (z_0 - z) / (1.0 - TEACHER_GRID.times[num_steps])

    away = first.velocity.detach().double().numpy() - v_star
    assert result.loss.item() == pytest.approx(np.mean(away**2), rel=1e-4)
    assert_close(by_eps.double(), torch.from_numpy(2 * away / away.size), atol=1e-6, rtol=1e-4)
    assert_close(by_x0, -by_eps)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("path", [FlowPath(), VP], ids=["flow", "vp"])
def test_with_target_x0_the_anchor_is_the_guided_teachers_belief_at_the_end_of_its_steps(
    path, num_steps, stepwise_network, exact_gaussian, micro_batch, anchored_step
):
    student = stepwise_network(STUDENT_GRID.times)
    step = anchored_step(
        student, exact_gaussian(path, 0.5), None, **micro_batch, path=path, prediction_space="not looked at"
    )
    result = DiversityAnchor(guidance=Guidance(3.0), num_steps=num_steps, weight=0.05, target="x0")(step)
    first = step.rollout.first
    by_x0, by_eps = torch.autograd.grad(result.loss, (first.x0, first.eps), allow_unused=True)

    # DDIM (Euler on a flow) by hand for the Gaussian whose mean is the guided one: x0 = (z - sigma eps) / alpha.
    cond, uncond = (micro_batch[name].tensors["mean"].numpy().reshape(4, 1, 1, 1) for name in ("cond", "uncond"))
    mean, z = uncond + 3 * (cond - uncond), micro_batch["noise"].double().numpy()

    def alpha_and_sigma(t):
        abar = VP.alphas_cumprod[round(1000 * t) - 1].double().item()
        return (1 - t, t) if path is not VP else (np.sqrt(abar), np.sqrt(1 - abar))

    def eps(z, t):
        alpha, sigma = alpha_and_sigma(t)
        return sigma * (z - alpha * mean) / (alpha**2 * 0.25 + sigma**2)

    for t, s in zip(TEACHER_GRID.times[:num_steps], TEACHER_GRID.times[1:], strict=False):
        (alpha, sigma), (alpha_s, sigma_s) = alpha_and_sigma(t), alpha_and_sigma(s)
        x0 = mean if alpha == 0 else (z - sigma * eps(z, t)) / alpha
        z = alpha_s * x0 + sigma_s * eps(z, t)
    alpha, sigma = alpha_and_sigma(TEACHER_GRID.times[num_steps])
    x_tilde = (z - sigma * eps(z, TEACHER_GRID.times[num_steps])) / alpha

    away = first.x0.detach().double().numpy() - x_tilde
    assert result.loss.item() == pytest.approx(np.mean(away**2), rel=1e-4)
    assert_close(by_x0.double(), torch.from_numpy(2 * away / away.size), atol=1e-6, rtol=1e-4)
    assert by_eps is None


@pytest.mark.parametrize(
    ("path", "space", "ratio"), [(FlowPath(), "velocity", 1.0), (VP, "eps", 213.588)], ids=["flow", "vp"]
)
def test_both_targets_agree_where_the_teachers_way_is_straight(
    path, space, ratio, exact_gaussian, micro_batch, anchored_step
):
    # One image per prompt: the teacher's x0 is the mean and its eps stays the same on the whole way. A loss in x0
    # space is (sigma_0 / alpha_0)^2 times the one in eps, at SDXL's noisiest timestep; 1 times that of the velocity.
    step = anchored_step(
        exact_gaussian(path, 0.7), exact_gaussian(path, 0.0), None, **micro_batch, path=path, prediction_space=space
    )
    secant, x0 = (
        DiversityAnchor(guidance=Guidance(3.0), num_steps=3, weight=1.0, target=target)(step).loss.item()
        for target in ("secant", "x0")
    )
    assert x0 == pytest.approx(ratio * secant, rel=1e-3) and secant > 1e-3
    curved = anchored_step(
        exact_gaussian(path, 0.7), exact_gaussian(path, 0.5), None, **micro_batch, path=path, prediction_space=space
    )
    secant, x0 = (
        DiversityAnchor(guidance=Guidance(3.0), num_steps=3, weight=1.0, target=target)(curved).loss.item()
        for target in ("secant", "x0")
    )
    assert abs(x0 / (ratio * secant) - 1) > 0.01


def test_the_anchor_is_zero_for_a_student_that_predicts_the_segment(
    stepwise_network, exact_gaussian, micro_batch, anchored_step
):
    # A teacher that knows one image per prompt, x0 = mean, flows along straight lines: v* = z_0 - mean. That is
    # weight 1, gain -1, bias 0 at step 1, whatever the later steps do.
    student = stepwise_network(STUDENT_GRID.times)
    with torch.no_grad():
        student.weight[0], student.gain[0], student.bias[0] = 1.0, -1.0, 0.0
    teacher, unguided = exact_gaussian(FlowPath(), 0.0), Guidance(1.0)
    step = anchored_step(student, teacher, None, **micro_batch)
    assert DiversityAnchor(guidance=unguided, num_steps=3, weight=1.0)(step).loss.item() < 1e-10
    # Guided, the target is another: mean (s - 1)^2 (c - u)^2 away.
    expected = (micro_batch["cond"].tensors["mean"] - 0.25).square().mean().item() * 2.0**2
    guided = DiversityAnchor(guidance=Guidance(3.0), num_steps=3, weight=1.0)(step)
    assert guided.loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("target", "num_calls"), [("secant", 3), ("x0", 4)])
def test_the_anchor_runs_k_teacher_steps_on_the_teachers_grid_from_the_students_noise(
    target, num_calls, stepwise_network, exact_gaussian, recorder, micro_batch, anchored_step
):
    spy = recorder(exact_gaussian(FlowPath(), 0.5))
    step = anchored_step(stepwise_network(STUDENT_GRID.times), spy, None, **micro_batch)
    DiversityAnchor(guidance=Guidance(1.0), num_steps=3, weight=0.05, target=target)(step)
    assert [t[0].item() for _, t, _ in spy.calls] == pytest.approx(list(TEACHER_GRID.times[:num_calls]))
    assert torch.equal(spy.calls[0][0], micro_batch["noise"]) and not any(spy.grad_enabled)


def test_coarse_steps_take_fewer_calls_to_the_same_time(
    stepwise_network, exact_gaussian, recorder, micro_batch, anchored_step
):
    fine = uniform_grid(30, shift=3)
    spy = recorder(exact_gaussian(FlowPath(), 0.5))
    settings = micro_batch | {"teacher_grid": fine}
    step = anchored_step(stepwise_network(STUDENT_GRID.times), spy, None, **settings)
    anchor = DiversityAnchor(guidance=Guidance(3.0), num_steps=7, weight=1.0, coarse_steps=3)
    anchor(step)
    kept = [0, 2, 5]
    assert [t[0].item() for _, t, _ in spy.calls] == pytest.approx([fine.times[i] for i in kept])
    assert anchor.num_forwards == sum(len(t) for _, t, _ in spy.calls) / len(micro_batch["noise"])
    assert DiversityAnchor(guidance=Guidance(3.0), num_steps=2, weight=1.0, coarse_steps=3).num_forwards == 4


def test_second_order_brings_coarse_steps_nearer_to_the_fine_way(exact_gaussian, micro_batch):
    fine, coarse = uniform_grid(300, shift=3), uniform_grid(12, shift=3)
    for path in (FlowPath(), VP):
        args = (exact_gaussian(path, 0.5), path, micro_batch["noise"], micro_batch["cond"], micro_batch["uncond"])
        truth = teacher_rollout(*args, grid=fine, guidance=Guidance(3.0), stop_after=100)
        one, two = (
            (teacher_rollout(*args, grid=coarse, guidance=Guidance(3.0), stop_after=4, second_order=o) - truth).norm()
            for o in (False, True)
        )
        assert two < 0.25 * one, path


def test_an_anchor_on_a_fraction_compares_the_first_samples_alone_at_the_same_mean_weight(
    stepwise_network, micro_batch, anchored_step
):
    whole = anchored_step(
        stepwise_network(STUDENT_GRID.times), stepwise_network(STUDENT_GRID.times, 1), None, **micro_batch
    )
    first = whole.rollout.first
    some = replace(whole, rollout=replace(whole.rollout, first=Prediction(first.x0[:2], first.eps[:2])))
    anchor = DiversityAnchor(guidance=Guidance(3.0), num_steps=2)
    alone = anchor(some.of_first(2)).loss
    assert not torch.isclose(alone, anchor(whole).loss)
    assert_close(replace(anchor, fraction=0.5)(some).loss, alone)
    # Twice as many as the fraction has on average count half as often: 2 of 4 samples at a fraction of a quarter.
    assert_close(replace(anchor, fraction=0.25)(some).loss, 2 * alone)
    nothing = replace(whole, rollout=replace(whole.rollout, first=None))
    assert replace(anchor, fraction=0.25)(nothing).loss == 0


@pytest.mark.parametrize(
    ("fraction", "batch_size", "numbers"),
    [(1.0, 3, [3, 3, 3]), (0.5, 32, [16, 16]), (0.5, 1, [0, 1, 0, 1]), (0.4, 3, [1, 1, 1, 1, 2]), (0.1, 10, [1] * 9)],
)
def test_the_number_of_anchored_samples_has_the_fraction_as_its_mean(fraction, batch_size, numbers):
    anchor = DiversityAnchor(guidance=Guidance(3.0), num_steps=2, fraction=fraction)
    assert [anchor.num_first(batch_size, i) for i in range(len(numbers))] == numbers
