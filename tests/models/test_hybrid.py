from itertools import pairwise

import pytest
import torch
from rollouts import teacher_rollout
from torch.testing import assert_close

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath
from dpdmd.method.randomness import draw_noise, image_generators, image_noise
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.sampling import hybrid_samples

FLOW, OFF = FlowPath(), Guidance(1.0)
GRID = Grid((1.0, 0.9, 0.75, 0.5, 0.0))


def test_a_hybrid_is_the_teacher_to_where_step_one_lands_and_the_student_from_there(
    stepwise_network, recorder, prompts
):
    fine = uniform_grid(30, shift=3)
    teacher, student = recorder(stepwise_network(fine.times, 0)), recorder(stepwise_network(GRID.times, 1))
    seeds, shape = [4, 9], (1, 3, 3)
    noise, cond, uncond = image_noise(seeds, shape), prompts([1.0, 2.0]), prompts([0.0, 0.5])
    guided = GuidedTeacher(teacher, FLOW, fine, Guidance(2.0))
    x0 = hybrid_samples(guided, student, seeds, shape, cond, uncond, student_grid=GRID)
    # Step 1 lands at .9; the teacher's nearest time is .9079 after 7 steps.
    assert len(teacher.calls) == 7 and torch.equal(teacher.calls[0][0][:2], noise)
    assert [t[0].item() for _, t, _ in student.calls] == pytest.approx([fine.times[7], 0.75, 0.5])
    x = teacher_rollout(teacher, FLOW, noise, cond, uncond, grid=fine, guidance=Guidance(2.0), stop_after=7)
    times = (fine.times[7], 0.75, 0.5, 0.0)
    with torch.no_grad():
        for t, s in pairwise(times):
            x = x + (s - t) * student.denoise(x, torch.full((2,), t), cond).velocity
    assert_close(x0, x, atol=1e-5, rtol=1e-5)


def test_the_later_steps_of_a_hybrid_are_of_the_students_kind(stepwise_network, prompts):
    fine, seeds, shape = uniform_grid(30, shift=3), [4, 9], (1, 3, 3)
    teacher, student = stepwise_network(fine.times, 0), stepwise_network(GRID.times, 1)
    cond, uncond, generators = prompts([1.0, 2.0]), prompts([0.0, 0.5]), image_generators(seeds)
    guided = GuidedTeacher(teacher, FLOW, fine, Guidance(2.0))
    x0 = hybrid_samples(guided, student, seeds, shape, cond, uncond, student_grid=GRID, kind="renoise_last")
    x, fresh = (draw_noise(generators, shape) for _ in range(2))
    x = guided.rollout(x, cond, uncond, stop_after=7)
    with torch.no_grad():
        for t, s in pairwise((fine.times[7], 0.75, 0.5, 0.0)):
            prediction = student(x, torch.full((2,), t), cond)
            x = (1 - s) * prediction.x0 + s * (fresh if s == 0.5 else prediction.eps)
    assert_close(x0, x, atol=1e-5, rtol=1e-5)


def test_a_student_of_one_step_makes_no_hybrid(stepwise_network, prompts):
    one = Grid((1.0, 0.0))
    teacher = GuidedTeacher(stepwise_network(one.times), FLOW, GRID, OFF)
    args = teacher, stepwise_network(one.times), [0], (1, 2, 2), prompts([1.0]), prompts([0.0])
    with pytest.raises(ValueError, match="a hybrid needs a student of at least two steps"):
        hybrid_samples(*args, student_grid=one)
