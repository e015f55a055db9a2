from dataclasses import replace

import pytest
import torch
from rollouts import teacher_rollout
from torch import nn
from torch.testing import assert_close

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath, Prediction
from dpdmd.method.terms.perceptual import Perceptual, Pictures
from dpdmd.planning.memory import LiveBytes

STUDENT_GRID, TEACHER_GRID = uniform_grid(4, shift=3), uniform_grid(8, shift=3)


def squared_error(first, second):
    return (first - second).square().mean(dim=(1, 2, 3))


def perceptual(decode=lambda latents: latents, one_by_one=False, **settings):
    pictures = Pictures(decode, size=(3, 4), one_by_one=one_by_one)
    options = {"num_teacher_steps": 8, "distance": squared_error, "pictures": pictures, "weight": 1.0}
    return Perceptual(guidance=Guidance(3.0), **options | settings)


@pytest.mark.parametrize("detach_first", [False, True])
def test_it_trains_every_step_that_the_rollout_kept_and_no_other_network(
    detach_first, networks, micro_batch, student_step
):
    student, teacher, fake = networks
    step = student_step(*networks, **micro_batch, detach_first=detach_first)
    autoencoder = nn.Conv2d(2, 3, 1).requires_grad_(False)
    perceptual(autoencoder)(step).loss.backward()
    assert student.steps_with_gradient() == [not detach_first, True, True, True]
    assert not any(teacher.grad_enabled) and teacher.denoise.steps_with_gradient() == [False] * 8
    assert fake.calls == [] and all(p.grad is None for p in autoencoder.parameters())


def test_the_target_is_the_guided_teachers_whole_rollout_from_the_same_noise(networks, micro_batch, student_step):
    _, teacher, _ = networks
    step = student_step(*networks, **micro_batch)
    loss = perceptual(lambda latents: 3 * latents)(step).loss
    assert len(teacher.calls) == TEACHER_GRID.num_steps
    first, t, _ = teacher.calls[0]
    assert torch.equal(first, step.noise.repeat(2, 1, 1, 1)) and t[0] == 1
    guided = {"grid": TEACHER_GRID, "guidance": Guidance(3.0)}
    target = teacher_rollout(teacher, FlowPath(), step.noise, step.cond, step.uncond, **guided)
    assert_close(loss, 9 * (step.rollout.x0 - target).square().mean())


def test_the_gradient_at_the_samples_is_that_through_the_decoder(networks, micro_batch, student_step):
    step = student_step(*networks, **micro_batch)
    step.rollout.x0.retain_grad()
    decoder = nn.Conv2d(2, 3, 3, padding=1)
    perceptual(decoder)(step).loss.backward()
    guided = {"grid": TEACHER_GRID, "guidance": Guidance(3.0)}
    target = teacher_rollout(step.teacher, FlowPath(), step.noise, step.cond, step.uncond, **guided)
    with torch.no_grad():
        error = decoder(step.rollout.x0) - decoder(target)
        expected = nn.functional.conv_transpose2d(2 * error / error.numel(), decoder.weight, padding=1)
    assert_close(step.rollout.x0.grad, expected)


def test_one_by_one_is_the_same_in_less_memory(networks, micro_batch, student_step):
    """Of four pictures a convolution's and a rectifier's activations are kept, or those of one."""
    decoder = nn.Sequential(nn.Conv2d(2, 50, 3, padding=1), nn.SiLU(), nn.Conv2d(50, 3, 3, padding=1))
    decoder.requires_grad_(False)
    student, losses, gradients, peaks = networks[0], [], [], []
    for one_by_one in (False, True):
        step = student_step(*networks, **micro_batch)
        term, step = perceptual(decoder, one_by_one), replace(step, teacher_x0=step.noise)
        with LiveBytes() as live:
            losses.append(term(step).loss)
            losses[-1].backward()
        peaks.append(live.peak)
        gradients.append({name: p.grad.clone() for name, p in student.named_parameters()})
        student.zero_grad()
    assert_close(losses[0], losses[1])
    assert_close(gradients[0], gradients[1])
    assert peaks[1] < 0.5 * peaks[0]


def test_it_is_zero_for_the_teachers_own_sample_and_pulls_towards_it(exact_gaussian, micro_batch, student_step):
    teacher = exact_gaussian(FlowPath(), 0.5)
    args = (teacher, FlowPath(), micro_batch["noise"], micro_batch["cond"], micro_batch["uncond"])
    target = teacher_rollout(*args, grid=TEACHER_GRID, guidance=Guidance(3.0))
    straight = Grid((1.0, 0.0))

    def lands_at(x0):
        def student(x_t, t, cond):
            return Prediction(x0, x_t)

        return student_step(student, teacher, None, **micro_batch | {"student_grid": straight})

    assert perceptual()(lands_at(target)).loss == 0
    astray = (target + 0.5).requires_grad_()
    perceptual()(lands_at(astray)).loss.backward()
    assert (astray.grad > 0).all()


def test_a_kept_sample_is_used_and_is_the_one_that_would_be_made(networks, micro_batch, student_step):
    _, teacher, _ = networks
    step = student_step(*networks, **micro_batch)
    fresh = perceptual()(step).loss
    guided = {"grid": TEACHER_GRID, "guidance": Guidance(3.0)}
    kept = teacher_rollout(teacher, FlowPath(), step.noise, step.cond, step.uncond, **guided)
    teacher.calls.clear()
    assert torch.equal(perceptual()(replace(step, teacher_x0=kept)).loss, fresh)
    assert teacher.calls == []
    assert perceptual()(replace(step, teacher_x0=kept + 1)).loss != fresh


def test_its_calls_are_those_of_the_teachers_rollout_unless_samples_are_kept(networks, micro_batch, student_step):
    _, teacher, _ = networks
    term = perceptual()
    term(student_step(*networks, **micro_batch))
    assert term.num_forwards == sum(len(t) for _, t, _ in teacher.calls) / len(micro_batch["noise"]) == 16
    assert perceptual(is_kept=True).num_forwards == 0
