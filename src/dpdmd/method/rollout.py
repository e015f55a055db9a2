"""From noise to samples: the guided multi-step teacher, and the three rollouts of a few-step student.

`rollout` takes all steps and keeps their graph: DMD trains through every step. `backward_simulation` trains one random
step of each sample. `anchored_rollout` is DP-DMD's: step 1 belongs to the anchor, and the graph is cut after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.devices import to_device
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.paths import Path, Prediction, step, to_midpoint

# "ode": deterministic steps (arXiv 2602.03139). "renoise": every step predicts x0 and adds fresh noise to it (LCM,
# arXiv 2310.04378; DMD2, arXiv 2405.14867). "renoise_last": the step before the last does so, which gives the last step
# clean noise; the others are deterministic, step 1 always, so that what it decides is kept.
StudentKind = Literal["ode", "renoise", "renoise_last"]
# i -> the noise (B, C, H, W) to add in the step from grid.times[i]; None: that step, or every step, is deterministic.
Renoise = Callable[[int], Tensor | None] | None


def renoise_by(kind: StudentKind, grid: Grid, draw: Callable[[], Tensor]) -> Renoise:
    """Which steps of a student of this kind add fresh noise; `draw` is called once for each of them, in order."""
    if kind == "ode":
        return None
    first = 0 if kind == "renoise" else max(1, grid.num_steps - 2)
    return lambda i: draw() if first <= i < grid.num_steps - 1 else None


@dataclass(frozen=True)
class GuidedTeacher:
    """The multi-step teacher and all that sampling it takes: its denoiser, path, grid and guidance."""

    denoise: Denoiser
    path: Path
    grid: Grid
    guidance: Guidance

    @torch.no_grad()
    def rollout(
        self, noise: Tensor, cond: Condition, uncond: Condition, *, stop_after: int | None = None, second_order=False
    ) -> Tensor:
        """Guided deterministic steps from `noise` (B, C, H, W) at grid.times[0] to z_K at grid.times[stop_after].

        stop_after: K, by default all steps. second_order: every step but the first also uses the prediction of the
        step before it (`paths.to_midpoint`), at no further call. Returns z_K (B, C, H, W) fp32 without gradient.
        Raises ValueError unless 1 <= K <= number of steps.
        """
        grid, last = self.grid, self.grid.num_steps if stop_after is None else stop_after
        if not 1 <= last <= grid.num_steps:
            raise ValueError(f"stop_after must be between 1 and {grid.num_steps}, got {stop_after}")
        x_t, before = noise.float(), None
        for i in range(last):
            t, s = grid.time(i, x_t), grid.time(i + 1, x_t)
            prediction = used = guided(self.denoise, x_t, t, cond, uncond, self.guidance)
            if second_order and before is not None:
                used = to_midpoint(self.path, x_t, prediction, before, t=t, s=s, t_before=grid.time(i - 1, x_t))
            x_t, before = step(self.path, used, s), prediction
        return x_t


@dataclass(frozen=True)
class StudentRollout:
    """`x0` (B, C, H, W): the student's samples. `first`: what step 1 predicted for the first A <= B of them, with the
    graph of that step alone; None unless the rollout was anchored and A > 0."""

    x0: Tensor
    first: Prediction | None = None


def rollout(
    denoise: Denoiser, path: Path, z: Tensor, cond: Condition, *, grid: Grid, start: int = 0, renoise: Renoise = None
) -> Tensor:
    """x0 (B, C, H, W) of all unguided student steps from z at grid.times[start], with the graph of every step."""
    for i in range(start, grid.num_steps):
        prediction = denoise(z, grid.time(i, z), cond)
        if i + 1 < grid.num_steps:
            z = step(path, prediction, grid.time(i + 1, z), renoise and renoise(i))
    return prediction.x0


def backward_simulation(
    denoise: Denoiser,
    path: Path,
    z: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    last_steps: list[int],
    start: int = 0,
    renoise: Renoise = None,
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
            continuing = [row for row, last in enumerate(last_steps) if last > i + 1]
            rows = torch.tensor(continuing or [0])
            there = to_device(rows, z.device)
            x_t, noise = z[there], renoise and renoise(i)
            noise = None if noise is None else noise[there]
            moved = step(path, denoise(x_t, grid.time(i, x_t), cond[rows]), grid.time(i + 1, x_t), noise)
            z = z.index_put((there,), moved) if continuing else z
    times = to_device(torch.tensor([grid.times[last - 1] for last in last_steps], dtype=torch.float32), z.device)
    return denoise(z, times, cond).x0


def anchored_rollout(
    denoise: Denoiser,
    path: Path,
    z_0: Tensor,
    cond: Condition,
    *,
    grid: Grid,
    rest: Callable[[Tensor], Tensor],
    renoise: Renoise = None,
    num_first: int | None = None,
) -> StudentRollout:
    """DP-DMD's rollout (arXiv 2602.03139, Algorithm 1): the graph is cut after step 1.

        first = G(z_0, t_0);   z_1 = stop_gradient(step(first, t_1));   x0 = rest(z_1)

    A loss on x0, such as DMD's, reaches the steps after the first; a loss on `first`, the diversity anchor's, reaches
    step 1 alone. rest: `rollout` or `backward_simulation` with start = 1. num_first: A, for how many samples such a
    loss follows, by default all; step 1 records no graph of the others.
    Raises ValueError for a grid of one step: DMD would train nothing.
    """
    if grid.num_steps < 2:
        raise ValueError(f"an anchored rollout needs at least 2 steps, one for DMD to train, got {grid.num_steps}")
    num_first = len(z_0) if num_first is None else num_first
    first = _first_step(denoise, z_0[:num_first], cond[:num_first], grid)
    with torch.no_grad():
        others = _first_step(denoise, z_0[num_first:], cond[num_first:], grid)
    parts = [part for part in (first, others) if part is not None]
    whole = Prediction(torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts]))
    z_1 = step(path, whole, grid.time(1, z_0), renoise and renoise(0)).detach()
    return StudentRollout(x0=rest(z_1), first=first)


def _first_step(denoise: Denoiser, z_0: Tensor, cond: Condition, grid: Grid) -> Prediction | None:
    return denoise(z_0, grid.time(0, z_0), cond) if len(z_0) else None
