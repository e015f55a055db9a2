"""From noise to samples: the guided multi-step teacher, and the few-step student with named gradient routing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid
from dpdmd.guidance import Guidance, guided
from dpdmd.paths import Path, Prediction, add_noise, step
from dpdmd.randomness import draw_noise, image_generators

# "ode": deterministic steps (arXiv 2602.03139). "renoise": every step predicts x0 and noises it anew (LCM,
# arXiv 2310.04378; DMD2, arXiv 2405.14867).
StudentKind = Literal["ode", "renoise"]


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
    denoise: Denoiser,
    path: Path,
    noise: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    detach_after: int = 0,
    fresh_noise: Callable[[int], Tensor] | None = None,
    num_steps: int | None = None,
) -> StudentRollout:
    """Unguided student steps from `noise`, all N of them on a deterministic path landing on x0.

    `detach_after` = m cuts the graph behind step m: a loss on `x0` reaches steps m + 1 ... N only, a loss on `first`
    reaches step 1 only (arXiv 2602.03139, stop-gradient on z_1). 0 lets the gradient through every step (plain DMD).

    `fresh_noise(i)`, (B, C, H, W), makes a re-noising student: behind step i, x_s = alpha(s) x0_hat + sigma(s) noise.
    Its training simulates the first `num_steps` - 1 calls without gradient and takes x0_hat of the last one as the
    sample (backward simulation, arXiv 2405.14867, sec. 4.5); `first` keeps its graph where m >= 1.

    Raises ValueError unless m < num_steps <= N: no step would be left for a loss on x0.
    """
    last = grid.num_steps if num_steps is None else num_steps
    if not 0 <= detach_after < last <= grid.num_steps:
        raise ValueError(
            f"detach_after must leave at least one of {grid.num_steps} steps to train: 0 <= detach_after < {last}, "
            f"got {detach_after}"
        )
    if fresh_noise is None and last < grid.num_steps:
        raise ValueError("only a re-noising student may stop before its last step: an ODE state there is no sample")
    x_t, first = noise.float(), None
    for i in range(last):
        needs_graph = fresh_noise is None or i == last - 1 or i < detach_after
        with torch.set_grad_enabled(needs_graph and torch.is_grad_enabled()):
            prediction = denoise(x_t, grid.time(i, x_t), cond)
        first = prediction if first is None else first
        if i + 1 < last:
            s = grid.time(i + 1, x_t)
            x_t = (
                step(path, prediction, s) if fresh_noise is None else add_noise(path, prediction.x0, fresh_noise(i), s)
            )
            if fresh_noise is not None or i + 1 == detach_after:
                x_t = x_t.detach()
    return StudentRollout(x0=prediction.x0, first=first)


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
    """A student's images as latents (B, C, H, W), one per seed, B = len(seeds) prompts.

    All noise of an image comes from its seed (`randomness.image_generators`): first z_0, then, for a re-noising
    student, the noise of every step.
    """
    generators = image_generators(seeds)

    def draw(_: int = 0) -> Tensor:
        return draw_noise(generators, shape).to(device)

    noise = draw()
    return student_rollout(denoise, path, noise, cond, grid=grid, fresh_noise=draw if kind == "renoise" else None).x0
