"""From noise to samples: the guided multi-step teacher, and the few-step student with named gradient routing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.paths import Path, Prediction, add_noise, step, to_midpoint
from dpdmd.method.randomness import draw_noise, image_generators

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
    start: int = 0,
    stop_after: int | None = None,
    second_order: bool = False,
) -> Tensor:
    """Guided deterministic teacher steps from `noise` (B, C, H, W) at grid.times[start] to grid.times[stop_after].

    `stop_after`: default all steps. `second_order`: every step but the first uses the prediction of the one before as
    well (`paths.to_midpoint`), at no further call.

    Returns z_K at t_K = grid.times[stop_after], (B, C, H, W) fp32, without gradient.
    Raises ValueError unless start < stop_after <= number of steps.
    """
    last = grid.num_steps if stop_after is None else stop_after
    if not 0 <= start < last <= grid.num_steps:
        raise ValueError(f"stop_after must be between {start + 1} and {grid.num_steps}, got {stop_after}")
    x_t, before = noise.float(), None
    for i in range(start, last):
        t, s = grid.time(i, x_t), grid.time(i + 1, x_t)
        prediction = guided(denoise, x_t, t, cond, uncond, guidance)
        used = prediction
        if second_order and before is not None:
            used = to_midpoint(path, x_t, prediction, before, t=t, s=s, t_before=grid.time(i - 1, x_t))
        x_t, before = step(path, used, s), prediction
    return x_t


@dataclass(frozen=True)
class StudentRollout:
    """`x0` (B, C, H, W) the student's samples, and how they began: what a diversity anchor sees.

    states: z_0 (the noise), z_1, ... where the first max(1, m) steps start, m = `detach_after`; predictions: what those
    steps predicted, each with the graph of its own step alone where m >= 1.
    """

    x0: Tensor
    states: tuple[Tensor, ...]
    predictions: tuple[Prediction, ...]

    @property
    def first(self) -> Prediction:
        """What step 1 predicted from the noise, with its own graph."""
        return self.predictions[0]


def student_rollout(
    denoise: Denoiser,
    path: Path,
    noise: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    detach_after: int = 0,
    fresh_noise: Callable[[int], Tensor] | None = None,
    last_steps: list[int] | None = None,
    is_anchored: bool = True,
) -> StudentRollout:
    """Unguided student steps from `noise`, all N of them on a deterministic path landing on x0.

    `detach_after` = m cuts the graph behind each of the first m steps: a loss on `x0` reaches steps m + 1 ... N only, a
    loss on prediction i <= m reaches step i only (arXiv 2602.03139, stop-gradient on z_1, where m = 1). 0 lets the
    gradient through every step (plain DMD). Not `is_anchored`: no loss on these predictions, which then have no graph.

    `last_steps`, one of m + 1 ... N for each sample, takes x0_hat of that step as the sample; the calls before it, but
    the first m, run without gradient (`backward_simulation`). `fresh_noise(i)`, (B, C, H, W), makes the student a
    re-noising one: behind step i, x_s = alpha(s) x0_hat + sigma(s) noise.

    Raises ValueError unless m < N: no step would be left for a loss on x0.
    """
    if not 0 <= detach_after < grid.num_steps:
        raise ValueError(
            f"detach_after must leave at least one of {grid.num_steps} steps to train: 0 <= detach_after < "
            f"{grid.num_steps}, got {detach_after}"
        )
    x_t, states, predictions = noise.float(), [], []
    for i in range(detach_after):
        with torch.set_grad_enabled(is_anchored and torch.is_grad_enabled()):
            prediction = denoise(x_t, grid.time(i, x_t), cond)
        states.append(x_t)
        predictions.append(prediction)
        x_t = advance(path, prediction, grid.time(i + 1, x_t), fresh_noise and fresh_noise(i)).detach()
    if last_steps is not None:
        options = {"start": detach_after, "last_steps": last_steps, "fresh_noise": fresh_noise}
        x0 = backward_simulation(denoise, path, x_t, cond, grid=grid, **options)
        return StudentRollout(x0=x0, states=tuple(states), predictions=tuple(predictions))
    for i in range(detach_after, grid.num_steps):
        prediction = denoise(x_t, grid.time(i, x_t), cond)
        if not predictions:
            states.append(x_t)
            predictions.append(prediction)
        if i + 1 < grid.num_steps:
            x_t = advance(path, prediction, grid.time(i + 1, x_t), fresh_noise and fresh_noise(i))
    return StudentRollout(x0=prediction.x0, states=tuple(states), predictions=tuple(predictions))


def backward_simulation(
    denoise: Denoiser,
    path: Path,
    z: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    last_steps: list[int],
    start: int = 0,
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """x0_hat (B, C, H, W) of one step of each sample, the steps before it taken without gradient.

    z: (B, C, H, W) at grid.times[start]. last_steps: for each sample the number of the step whose x0_hat it is,
    start + 1 ... N. Samples that have arrived leave the batch; at the end all are called together, each at its own
    time, so that one call alone records a graph (arXiv 2405.14867, sec. 4.5; differs: there all have the same step).

    There are always N - start calls, if need be on a sample that has arrived: processes that share a network's weights
    have to call it equally often, whatever their samples' last steps.
    Raises ValueError for a last step outside of start + 1 ... N.
    """
    if not all(start < last <= grid.num_steps for last in last_steps):
        raise ValueError(f"last_steps must be {start + 1} to {grid.num_steps}, got {last_steps}")
    with torch.no_grad():
        for i in range(start, grid.num_steps - 1):
            going_on = [row for row, last in enumerate(last_steps) if last > i + 1]
            rows = torch.tensor(going_on or [0])
            x_t = z[rows]
            noise = None if fresh_noise is None else fresh_noise(i)[rows]
            prediction = denoise(x_t, grid.time(i, x_t), cond[rows])
            if going_on:
                z = z.index_put((rows,), advance(path, prediction, grid.time(i + 1, x_t), noise))
    times = torch.tensor([grid.times[last - 1] for last in last_steps], device=z.device, dtype=torch.float32)
    return denoise(z, times, cond).x0


def advance(path: Path, prediction: Prediction, s: Tensor, noise: Tensor | None = None) -> Tensor:
    """To time s (B,): a deterministic step, or with `noise` x0_hat noised anew."""
    return step(path, prediction, s) if noise is None else add_noise(path, prediction.x0, noise, s)


def last_steps(levels: Tensor, start: int, num_steps: int) -> list[int]:
    """One of the steps start + 1 ... N for each sample, by its level (B,) in [0, 1)."""
    return (start + 1 + (levels * (num_steps - start)).long().clamp(max=num_steps - start - 1)).tolist()


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
