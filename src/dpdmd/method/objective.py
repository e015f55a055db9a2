"""What an objective is: a short list of weighted terms over one student rollout."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.discriminator import Discriminator, DiscriminatorSettings
from dpdmd.method.grids import Grid
from dpdmd.method.losses import Space
from dpdmd.method.paths import Path
from dpdmd.method.rollout import StudentRollout


@dataclass(frozen=True)
class StudentStep:
    """Everything a term may see of one micro-batch of B samples.

    rollout: the student's samples `x0` (B, C, H, W) with graph, and `first`, the prediction of step 1 (None unless the
        objective has `detach_first`).
    noise: z_0 (B, C, H, W), from which the samples came. cond, uncond: the B prompts, and B times the empty prompt.
    teacher, fake_score: denoisers, (x_t, t, cond) -> Prediction, without guidance (`guidance.guided` adds it).
    path, student_grid, teacher_grid, prediction_space: the model's.
    rng: rng("name") is a fresh CPU generator of this micro-batch, the same in a resumed run.
    samples_per_prompt: R. Samples of one prompt stand next to each other: x0.unflatten(0, (-1, R)) is (B / R, R, ...).
    teacher_x0: the guided teacher's samples (B, C, H, W) from the same noise and prompts where the run keeps them.
    discriminator: of an objective that trains one.
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
    prediction_space: Space
    rng: Callable[[str], torch.Generator]
    samples_per_prompt: int = 1
    teacher_x0: Tensor | None = None
    discriminator: Discriminator | None = None

    def of_first(self, number: int) -> "StudentStep":
        """The same with noise and prompts of the first `number` samples only: those of a shorter `rollout.first`."""
        noise, cond, uncond = self.noise[:number], self.cond[:number], self.uncond[:number]
        return replace(self, noise=noise, cond=cond, uncond=uncond)


@dataclass(frozen=True)
class TermResult:
    """`loss`: scalar with graph, unweighted. `health`: detached scalars for the log, on any device."""

    loss: Tensor
    health: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the student's loss; training adds weight * loss.

    every: the term takes part in every n-th student update, the first included, with n times its weight, so that its
    mean weight is `weight`. A subclass is a frozen dataclass that sets `name` and defines `__call__`.

    name: of the term in logs ("loss/NAME"). trains_first_step: whether its loss has a gradient for `rollout.first`.
    network: what the term needs in addition to the roles' networks, if anything: a comparison counts its parameters.
    """

    weight: float = 1.0
    every: int = 1
    name: ClassVar[str]
    trains_first_step: ClassVar[bool] = False
    network: ClassVar[nn.Module | None] = None

    def __call__(self, step: StudentStep) -> TermResult:
        """The term's loss on one micro-batch."""
        raise NotImplementedError

    def num_first(self, batch_size: int, number: int) -> int:
        """Of how many samples of micro-batch `number`, the first ones, it needs `rollout.first`."""
        return batch_size if self.trains_first_step else 0

    @property
    def num_forwards(self) -> float:
        """Calls of the denoising networks per sample of a micro-batch, on average; a guided one counts twice."""
        return 0


@dataclass(frozen=True)
class Objective:
    """The student's loss: the weighted sum of `terms` over one rollout.

    detach_first: cut the graph after step 1 (`rollout.anchored_rollout`), as DP-DMD does. num_pairs: train on a fixed
    pool of that many pairs of prompt and noise, whose teacher samples are kept (`StudentStep.teacher_x0`); None: fresh
    noise in every update. discriminator: train one along with the fake score (`StudentStep.discriminator`).
    """

    terms: tuple[Term, ...]
    detach_first: bool = False
    num_pairs: int | None = None
    discriminator: DiscriminatorSettings | None = None

    def due(self, step: int) -> list[tuple[float, Term]]:
        """(weight, term) of the terms that take part in the student update with `step` others before it."""
        return [(term.every * term.weight, term) for term in self.terms if step % term.every == 0]
