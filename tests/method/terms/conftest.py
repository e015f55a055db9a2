"""A micro-batch on the grids of the test's own module: STUDENT_GRID and, where it has one, TEACHER_GRID."""

import pytest


@pytest.fixture
def micro_batch(request, prompts, randn):
    """What `student_step` takes in addition to the networks: four prompts, one noise each."""
    grids = {"student_grid": request.module.STUDENT_GRID}
    if hasattr(request.module, "TEACHER_GRID"):
        grids["teacher_grid"] = request.module.TEACHER_GRID
    return {
        "noise": randn(0, 4, 2, 3, 4),
        "cond": prompts([1.0, -1.0, 2.0, 0.5]),
        "uncond": prompts([0.25, 0.25, 0.25, 0.25]),
        **grids,
    }


@pytest.fixture
def networks(request, stepwise_network, recorder):
    """Student, teacher and fake score; the last two in recorders, all with parameters that require gradients."""
    student_times = request.module.STUDENT_GRID.times
    teacher_times = getattr(request.module, "TEACHER_GRID", request.module.STUDENT_GRID).times
    student, fake = (stepwise_network(student_times, seed) for seed in (0, 2))
    return student, recorder(stepwise_network(teacher_times, 1)), recorder(fake)
