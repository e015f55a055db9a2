"""Time grids: the teacher's, the student's, the noise levels of the score losses, and a lint for all of them.

A grid is a descending tuple of times t_0 > t_1 > ... > t_N = 0; on a flow t is sigma. The grid a student was trained
on is part of the student: training, sampling and export use the same object, stored with the weights.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

NEAR_EMPTY_STEP = 0.02


@dataclass(frozen=True)
class Grid:
    """`times`: N + 1 values, strictly descending from at most 1 to exactly 0. Raises ValueError otherwise."""

    times: tuple[float, ...]

    def __post_init__(self):
        times = self.times
        if len(times) < 2 or times[-1] != 0 or not times[0] <= 1:
            raise ValueError(f"a grid starts at t <= 1 and ends at 0 with at least one step, got {times}")
        if not all(a > b for a, b in pairwise(times)):
            raise ValueError(f"a grid must descend strictly, got {times}")

    @property
    def num_steps(self) -> int:
        """N, the number of network calls."""
        return len(self.times) - 1

    def time(self, index: int, batch: Tensor) -> Tensor:
        """t_index as (B,) on the device of `batch` (B, ...)."""
        return torch.full((len(batch),), self.times[index], device=batch.device, dtype=torch.float32)


def shift_time(u: Tensor, shift: float) -> Tensor:
    """t = shift u / (1 + (shift - 1) u) (arXiv 2403.03206, eq. 23): shift > 1 moves times toward noise."""
    return shift * u / (1 + (shift - 1) * u)


def uniform_grid(num_steps: int, *, shift: float) -> Grid:
    """Uniform in u, then shifted: every call counts. N = 4, shift 3: 1, .9, .75, .5, 0."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}")
    u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return Grid(tuple(shift_time(u, shift).clamp(max=1).tolist()))


def anchor_steps(teacher: Grid, target_time: float) -> int:
    """K: how many teacher steps lead closest to `target_time`, 1 <= K < number of teacher steps.

    Ties go to the larger K, the less noisy end.
    """
    candidates = range(1, teacher.num_steps)
    if not candidates:
        raise ValueError("an anchor needs a teacher grid of at least 2 steps")
    return min(candidates, key=lambda k: (abs(teacher.times[k] - target_time), -k))


def coarsen(grid: Grid, stops: tuple[int, ...], num_steps: int) -> tuple[Grid, tuple[int, ...]]:
    """`grid` with `num_steps` of its steps left on the way to each stop, spread evenly; and where the stops are then.

    stops: ascending indices K_1 < K_2 ... >= 1. A segment of no more than `num_steps` steps stays as it is.
    """
    kept, starts = [0], (0, *stops)
    for a, b in pairwise(starts):
        number = min(num_steps, b - a)
        kept += [a + round((b - a) * j / number) for j in range(1, number + 1)]
    times = [grid.times[i] for i in kept] + list(grid.times[stops[-1] + 1 :])
    return Grid(tuple(times)), tuple(kept.index(stop) for stop in stops)


def jittered(grid: Grid, amount: float, rng: torch.Generator) -> Grid:
    """`grid` with its second time moved at random, by at most `amount` < 1 of the way to either neighbour."""
    times, u = list(grid.times), 2 * torch.rand((), generator=rng).item() - 1
    times[1] += amount * u * (times[0] - times[1] if u > 0 else times[1] - times[2])
    return Grid(tuple(times))


def sample_times(batch_size: int, rng: torch.Generator, *, low: float, high: float, shift: float = 1.0) -> Tensor:
    """tau (B,) in [low, high], one per sample and stratified over the batch: each of B equal slices is hit once.

    u is uniform, tau = low + (high - low) shift_time(u). Drawn on the CPU in random order.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"times need 0 <= low < high <= 1, got low {low}, high {high}")
    u = (torch.randperm(batch_size, generator=rng) + torch.rand(batch_size, generator=rng)) / batch_size
    return low + (high - low) * shift_time(u, shift)


def lint(student: Grid, teacher: Grid | None = None, num_anchor_steps: int | None = None) -> list[str]:
    """Plain-words warnings: student steps that change almost nothing, an anchor far from where step 1 lands."""
    messages = []
    for i, (a, b) in enumerate(pairwise(student.times)):
        if a - b < NEAR_EMPTY_STEP:
            messages.append(
                f"student step {i + 1} of {student.num_steps} goes from t = {a:.4f} to {b:.4f} and does almost "
                f"nothing: {student.num_steps} calls are worth {student.num_steps - 1}. "
                'student.grid = "uniform" makes every call count.'
            )
    if teacher is not None and num_anchor_steps is not None:
        reached, landing = teacher.times[num_anchor_steps], student.times[1]
        span, first = student.times[0] - reached, student.times[0] - landing
        if first > 1.5 * span or span > 1.5 * first:
            better = anchor_steps(teacher, landing)
            messages.append(
                f"the anchor is {num_anchor_steps} teacher steps, t = {reached:.4f}, but the student's first step "
                f"lands at t = {landing:.4f}, {first / span:.1f} times as far. {better} steps reach "
                f"t = {teacher.times[better]:.4f}."
            )
    return messages
