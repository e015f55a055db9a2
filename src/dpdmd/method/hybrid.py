"""The teacher-first hybrid: the bound for every method that trains the student's first step."""

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.grids import Grid, anchor_steps
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import Path
from dpdmd.method.rollout import student_rollout, teacher_rollout


@torch.no_grad()
def hybrid_samples(
    teacher: Denoiser,
    student: Denoiser,
    path: Path,
    noise: Tensor,
    cond: Condition,
    uncond: Condition,
    *,
    teacher_grid: Grid,
    guidance: Guidance,
    student_grid: Grid,
) -> Tensor:
    """The teacher-first hybrid (arXiv 2503.10637): the guided teacher instead of the student's first step, no training.

    The teacher goes to its time nearest to where the student's first step lands, the student's other steps follow from
    there. What these still lose of the teacher's diversity, no training of step 1 can bring back.

    noise: (B, C, H, W); returns latents of the same shape. Raises ValueError for a student of one step.
    """
    if student_grid.num_steps < 2:
        raise ValueError("a hybrid needs a student of at least two steps: the teacher takes the place of the first")
    stop = anchor_steps(teacher_grid, student_grid.times[1])
    z = teacher_rollout(teacher, path, noise, cond, uncond, grid=teacher_grid, guidance=guidance, stop_after=stop)
    rest = Grid((teacher_grid.times[stop], *student_grid.times[2:]))
    return student_rollout(student, path, z, cond, grid=rest).x0
