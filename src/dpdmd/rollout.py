"""From noise to samples: the guided multi-step teacher, and the few-step student with named gradient routing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid
from dpdmd.guidance import Guidance, guided
from dpdmd.paths import Path, Prediction, step


@torch.no_grad()
def teacher_rollout(
    denoise: Denoiser,
    path: Path,
    noise: Tensor,
    cond: Condition,
    uncond: Condition,
    *,
    grid: Grid,
    guidance: Guidance,
    stop_after: int | None = None,
) -> Tensor:
    """The first `stop_after` (default: all) guided deterministic teacher steps from `noise` (B, C, H, W).

    Returns z_K at t_K = grid.times[stop_after], (B, C, H, W) fp32, without gradient.
    Raises ValueError unless 1 <= stop_after <= number of steps.
    """
    num_steps = grid.num_steps if stop_after is None else stop_after
    if not 1 <= num_steps <= grid.num_steps:
        raise ValueError(f"stop_after must be between 1 and {grid.num_steps}, got {stop_after}")
    x_t = noise.float()
    for i in range(num_steps):
        prediction = guided(denoise, x_t, grid.time(i, x_t), cond, uncond, guidance)
        x_t = step(path, prediction, grid.time(i + 1, x_t))
    return x_t


@dataclass(frozen=True)
class StudentRollout:
    """`x0` (B, C, H, W) the student's samples; `first` what step 1 predicted from the noise, with its own graph."""

    x0: Tensor
    first: Prediction


def student_rollout(
    denoise: Denoiser, path: Path, noise: Tensor, cond: Condition, *, grid: Grid, detach_after: int = 0
) -> StudentRollout:
    """N deterministic, unguided student steps; the last lands on x0.

    `detach_after` = m cuts the graph behind step m: a loss on `x0` reaches steps m + 1 ... N only, a loss on `first`
    reaches step 1 only (arXiv 2602.03139, stop-gradient on z_1). 0 lets the gradient through every step (plain DMD).
    Raises ValueError when m >= N: no step would be left for a loss on x0.
    """
    if not 0 <= detach_after < grid.num_steps:
        raise ValueError(
            f"detach_after must leave at least one step to train: 0 <= detach_after < {grid.num_steps}, "
            f"got {detach_after}"
        )
    x_t, first = noise.float(), None
    for i in range(grid.num_steps):
        prediction = denoise(x_t, grid.time(i, x_t), cond)
        first = prediction if first is None else first
        x_t = step(path, prediction, grid.time(i + 1, x_t))
        if i + 1 == detach_after:
            x_t = x_t.detach()
    return StudentRollout(x0=x_t, first=first)
