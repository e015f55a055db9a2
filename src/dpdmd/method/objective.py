"""What an objective is: a short list of weighted terms over one student rollout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.discriminator import Discriminator
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Path
from dpdmd.method.rollout import StudentRollout


@dataclass(frozen=True)
class StudentStep:
    """Everything a term may see of one micro-batch of B prompts.

    `rng(stream)` names a fresh generator of this micro-batch. `prediction_space` is the network's own. `teacher_x0`:
    the guided teacher's samples (B, C, H, W) from the same noise and prompts, None where they are not known.
    `discriminator`: of objectives that train one.
    """

    rollout: StudentRollout
    noise: Tensor
    cond: Condition
    uncond: Condition
    teacher: Denoiser
    fake_score: Denoiser
    path: Path
    student_grid: Grid
    teacher_grid: Grid
    prediction_space: str
    rng: Callable[[str], torch.Generator]
    teacher_x0: Tensor | None = None
    discriminator: Discriminator | None = None


@dataclass(frozen=True)
class TermResult:
    """`loss` scalar, unweighted, with graph; `health` detached scalars for the log, on whatever device."""

    loss: Tensor
    health: dict[str, Tensor]


class Term(Protocol):
    """One part of the student's loss. The trainer adds weight * loss."""

    name: str
    weight: float

    @property
    def num_forwards(self) -> int:
        """Network calls per sample that one evaluation takes; a guided one counts twice."""

    def __call__(self, step: StudentStep) -> TermResult: ...


@dataclass(frozen=True)
class Ramp:
    """A delayed start: 0 in the first `start` student updates, then up to 1 in `length` equal steps."""

    start: int = 0
    length: int = 0

    def __call__(self, step: int) -> float:
        """In the update that has `step` others before it."""
        return min(1.0, max(0, step + 1 - self.start) / max(1, self.length))


@dataclass(frozen=True)
class Objective:
    """The student's loss: `terms` summed, over a rollout cut behind step `detach_after`.

    By name: `ramps` of terms that do not have their weight from the first update on; `every` so many updates, from the
    first one on, of terms that are not in each, and then count so many times: a weight is that of the mean update.
    """

    terms: tuple[Term, ...]
    detach_after: int
    ramps: Mapping[str, Ramp] = field(default_factory=dict)
    every: Mapping[str, int] = field(default_factory=dict)

    def is_due(self, name: str, step: int) -> bool:
        """Whether the term has a part in the update that has `step` others before it, whatever its ramp says."""
        return step % self.every.get(name, 1) == 0

    def weighted(self, step: int) -> list[tuple[float, Term]]:
        """(weight, term) in the update that has `step` others before it; terms that have no part in it are left out."""
        due = [term for term in self.terms if self.is_due(term.name, step)]
        shares = [(self.ramps[term.name](step) if term.name in self.ramps else 1.0, term) for term in due]
        return [(share * self.every.get(term.name, 1) * term.weight, term) for share, term in shares if share > 0]
