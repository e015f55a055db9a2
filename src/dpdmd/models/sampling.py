"""Whole samples: the rollout that trains a student, and images as latents from seeds."""

from functools import partial

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.grids import Grid, anchor_steps
from dpdmd.method.paths import Path
from dpdmd.method.randomness import draw_noise, image_generators
from dpdmd.method.rollout import (
    GuidedTeacher,
    Renoise,
    StudentKind,
    StudentRollout,
    anchored_rollout,
    backward_simulation,
    renoise_by,
    rollout,
)


def student_rollout(
    denoise: Denoiser,
    path: Path,
    noise: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    detach_first: bool = False,
    last_steps: list[int] | None = None,
    renoise: Renoise = None,
    num_first: int | None = None,
) -> StudentRollout:
    """The rollout that a student is trained on, of the three in `method.rollout`.

    detach_first: cut the graph after step 1. num_first: for how many samples step 1 keeps its own graph then, by
    default all. last_steps: train x0_hat of that step of each sample, else all steps.
    """
    start = int(detach_first)
    rest = rollout if last_steps is None else partial(backward_simulation, last_steps=last_steps)
    rest = partial(rest, denoise, path, cond=cond, grid=grid, start=start, renoise=renoise)
    if not detach_first:
        return StudentRollout(rest(z=noise.float()))
    options = {"renoise": renoise, "num_first": num_first}
    return anchored_rollout(denoise, path, noise.float(), cond, grid=grid, rest=lambda z_1: rest(z=z_1), **options)


@torch.no_grad()
def student_samples(
    denoise: Denoiser,
    path: Path,
    seeds: list[int],
    shape: tuple[int, int, int],
    cond: Condition,
    *,
    grid: Grid,
    kind: StudentKind = "ode",
    device: torch.device | str = "cpu",
) -> Tensor:
    """A student's images as latents (B, C, H, W), one per seed, for B = len(seeds) prompts.

    All noise of an image comes from its seed (`randomness.image_generators`): first z_0, then, for a re-noising
    student, the noise of every step.
    """
    generators = image_generators(seeds)

    def draw() -> Tensor:
        return draw_noise(generators, shape).to(device)

    return rollout(denoise, path, draw(), cond, grid=grid, renoise=renoise_by(kind, grid, draw))


@torch.no_grad()
def hybrid_samples(
    teacher: GuidedTeacher,
    student: Denoiser,
    seeds: list[int],
    shape: tuple[int, int, int],
    cond: Condition,
    uncond: Condition,
    *,
    student_grid: Grid,
    kind: StudentKind = "ode",
    device: torch.device | str = "cpu",
) -> Tensor:
    """The teacher-first hybrid (arXiv 2503.10637): the guided teacher takes the student's first step, no training.

    The teacher goes to its time nearest to where the student's first step lands; the student's other steps follow from
    there. It bounds every method that trains step 1: what the other steps lose of the teacher's diversity, no training
    of step 1 can bring back.

    Noise, latents and kind as in `student_samples`; step 1 of a student of kind "renoise" has no place here. Raises
    ValueError for a student of one step.
    """
    generators = image_generators(seeds)

    def draw() -> Tensor:
        return draw_noise(generators, shape).to(device)

    if student_grid.num_steps < 2:
        raise ValueError("a hybrid needs a student of at least two steps: the teacher takes the place of the first")
    stop = anchor_steps(teacher.grid, student_grid.times[1])
    z = teacher.rollout(draw(), cond, uncond, stop_after=stop)
    rest = Grid((teacher.grid.times[stop], *student_grid.times[2:]))
    renoise = renoise_by(kind, student_grid, draw)
    return rollout(student, teacher.path, z, cond, grid=rest, renoise=renoise and (lambda i: renoise(i + 1)))
