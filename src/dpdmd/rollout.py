"""From noise to samples: the guided multi-step teacher, and the few-step student with named gradient routing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid
from dpdmd.guidance import Guidance, guided
from dpdmd.paths import Path, Prediction, add_noise, step, to_midpoint
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
    num_steps: int | None = None,
    is_anchored: bool = True,
) -> StudentRollout:
    """Unguided student steps from `noise`, all N of them on a deterministic path landing on x0.

    `detach_after` = m cuts the graph behind each of the first m steps: a loss on `x0` reaches steps m + 1 ... N only, a
    loss on prediction i <= m reaches step i only (arXiv 2602.03139, stop-gradient on z_1, where m = 1). 0 lets the
    gradient through every step (plain DMD). Not `is_anchored`: no loss on these predictions, which then have no graph.

    `num_steps` stops there and takes x0_hat of the last call as the sample; the calls before it, but the first m, run
    without gradient (backward simulation, arXiv 2405.14867, sec. 4.5). A re-noising student is always trained so:
    `fresh_noise(i)`, (B, C, H, W), gives behind step i, x_s = alpha(s) x0_hat + sigma(s) noise.

    Raises ValueError unless m < num_steps <= N: no step would be left for a loss on x0.
    """
    last = grid.num_steps if num_steps is None else num_steps
    if not 0 <= detach_after < last <= grid.num_steps:
        raise ValueError(
            f"detach_after must leave at least one of {grid.num_steps} steps to train: 0 <= detach_after < {last}, "
            f"got {detach_after}"
        )
    simulated = fresh_noise is not None or num_steps is not None
    x_t, states, predictions = noise.float(), [], []
    for i in range(last):
        needs_graph = is_anchored if i < detach_after else not simulated or i == last - 1
        with torch.set_grad_enabled(needs_graph and torch.is_grad_enabled()):
            prediction = denoise(x_t, grid.time(i, x_t), cond)
        if i < max(1, detach_after):
            states.append(x_t)
            predictions.append(prediction)
        if i + 1 < last:
            s = grid.time(i + 1, x_t)
            x_t = (
                step(path, prediction, s) if fresh_noise is None else add_noise(path, prediction.x0, fresh_noise(i), s)
            )
            if simulated or i < detach_after:
                x_t = x_t.detach()
    return StudentRollout(x0=prediction.x0, states=tuple(states), predictions=tuple(predictions))


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
