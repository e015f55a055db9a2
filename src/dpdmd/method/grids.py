"""Time grids: the teacher's, the student's, and the noise levels at which scores are compared.

A grid is a descending tuple of times t_0 > t_1 > ... > t_N = 0; on a flow t is sigma. The grid a student was trained
on is part of the student: training, sampling and export use the same object, stored with the weights.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """`times`: N + 1 values, strictly descending from at most 1 to exactly 0. Raises ValueError otherwise."""

    times: tuple[float, ...]

    def __post_init__(self):
        if len(self.times) < 2 or self.times[-1] != 0 or not self.times[0] <= 1:
            raise ValueError(f"a grid starts at t <= 1 and ends at 0 with at least one step, got {self.times}")
        if not all(a > b for a, b in pairwise(self.times)):
            raise ValueError(f"a grid must descend strictly, got {self.times}")

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


def coarsen(grid: Grid, stop: int, num_steps: int) -> tuple[Grid, int]:
    """`grid` with `num_steps` of the steps to index `stop` left, spread evenly, and the index of `stop` in it.

    A segment of at most `num_steps` steps stays as it is.
    """
    number = min(num_steps, stop)
    kept = [round(stop * j / number) for j in range(number + 1)]
    return Grid(tuple(grid.times[i] for i in kept) + grid.times[stop + 1 :]), number


def sample_times(batch_size: int, rng: torch.Generator, *, low: float, high: float, shift: float = 1.0) -> Tensor:
    """tau (B,) in [low, high], one per sample and stratified over the batch: each of B equal slices is hit once.

    u is uniform, tau = low + (high - low) shift_time(u). Drawn on the CPU in random order.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"times need 0 <= low < high <= 1, got low {low}, high {high}")
    u = (torch.randperm(batch_size, generator=rng) + torch.rand(batch_size, generator=rng)) / batch_size
    return low + (high - low) * shift_time(u, shift)
