"""What an objective is: a short list of weighted terms over one student rollout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid
from dpdmd.paths import Path
from dpdmd.rollout import StudentRollout


@dataclass(frozen=True)
class StudentStep:
    """Everything a term may see of one micro-batch of B prompts.

    `rng(stream)` names a fresh generator of this micro-batch. `prediction_space` is the network's own. `teacher_x0`:
    the guided teacher's samples (B, C, H, W) from the same noise and prompts, None where they are not known.
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
class Objective:
    """The student's loss: `terms` summed, over a rollout cut behind step `detach_after`."""

    terms: tuple[Term, ...]
    detach_after: int
