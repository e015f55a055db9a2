"""One update of each role: the losses as functions of a micro-batch, and the step they share."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.denoiser import Denoiser
from dpdmd.grids import Grid, sample_times
from dpdmd.losses import denoising_loss
from dpdmd.objectives.base import Objective, StudentStep
from dpdmd.paths import Path, add_noise
from dpdmd.roles import Role
from dpdmd.rollout import StudentKind, StudentRollout, student_rollout
from dpdmd.train.data import MicroBatch
from dpdmd.train.distribution import whole
from dpdmd.train.health import mean_of, sample_health


@dataclass(frozen=True)
class Players:
    """The three denoisers, the path they share and the grids that student and teacher take along it."""

    student: Denoiser
    teacher: Denoiser
    fake_score: Denoiser
    path: Path
    prediction_space: str
    student_grid: Grid
    teacher_grid: Grid
    student_kind: StudentKind = "ode"


@dataclass(frozen=True)
class TauRange:
    """Noise levels at which scores are compared and the fake score is trained."""

    low: float
    high: float
    shift: float


@dataclass(frozen=True)
class MicroLoss:
    """`total` is what backward starts from; `parts` are the unweighted losses and `health` plain numbers, to log."""

    total: Tensor
    parts: dict[str, float]
    health: dict[str, float]


def rollout_student(players: Players, batch: MicroBatch, *, detach_after: int = 0) -> StudentRollout:
    """The student's samples of a micro-batch: the whole rollout of an ODE student, one random step of a re-noising one.

    The random step is behind `detach_after`, so that it is never the one that DMD must not reach.
    """
    arguments = (players.student, players.path, batch.noise, batch.cond)
    grid = players.student_grid
    if players.student_kind == "ode":
        return student_rollout(*arguments, grid=grid, detach_after=detach_after)
    num_steps = int(torch.randint(detach_after + 1, grid.num_steps + 1, (), generator=batch.rng("last_step")))
    rng = batch.rng("renoise")

    def fresh_noise(i: int) -> Tensor:
        return torch.randn(batch.noise.shape, generator=rng).to(batch.noise.device)

    return student_rollout(
        *arguments, grid=grid, detach_after=detach_after, fresh_noise=fresh_noise, num_steps=num_steps
    )


def fake_score_loss(players: Players, batch: MicroBatch, tau_range: TauRange, *, detach_after: int = 0) -> MicroLoss:
    """L_fake (arXiv 2405.14867, sec. 3): the fake score denoises fresh samples of the student, tau per sample.

    The rollout runs without graph: the fake score alone receives gradient. `detach_after`: the objective's, so that a
    re-noising student's samples are of the steps that DMD trains.
    """
    with torch.no_grad():
        rollout = rollout_student(players, batch, detach_after=detach_after)
    x0, rng = rollout.x0, batch.rng("denoising")
    tau = sample_times(len(x0), rng, low=tau_range.low, high=tau_range.high, shift=tau_range.shift).to(x0.device)
    eps = torch.randn(x0.shape, generator=rng).to(x0.device)
    prediction = players.fake_score(add_noise(players.path, x0, eps, tau), tau, batch.cond)
    loss = denoising_loss(prediction, x0, eps, players.prediction_space, players.path, tau)
    return MicroLoss(loss, {"loss/fake_score": loss.item()}, {})


def student_loss(players: Players, batch: MicroBatch, objective: Objective) -> MicroLoss:
    """Sum of weight * term over one rollout that is cut behind step `detach_after`; the student receives gradient."""
    rollout = rollout_student(players, batch, detach_after=objective.detach_after)
    step = StudentStep(
        rollout=rollout,
        noise=batch.noise,
        cond=batch.cond,
        uncond=batch.uncond,
        teacher=players.teacher,
        fake_score=players.fake_score,
        path=players.path,
        student_grid=players.student_grid,
        teacher_grid=players.teacher_grid,
        prediction_space=players.prediction_space,
        rng=batch.rng,
    )
    results = {term.name: (term.weight, term(step)) for term in objective.terms}
    health = {f"health/{key}": value for _, result in results.values() for key, value in result.health.items()}
    return MicroLoss(
        total=sum(weight * result.loss for weight, result in results.values()),
        parts={f"loss/{name}": result.loss.item() for name, (_, result) in results.items()},
        health=health | {f"sample/{key}": value for key, value in sample_health(rollout.x0).items()},
    )


def learning_rate_at(step: int, peak: float, warmup: int) -> float:
    """Linear warm-up: peak (step + 1) / warmup until it is reached; `step` counts student updates from 0."""
    return peak * min(1.0, (step + 1) / max(warmup, 1))


class Updater:
    """One role's optimiser, and the one way its weights change."""

    def __init__(
        self,
        role: Role,
        network: nn.Module,
        parameters: list[nn.Parameter],
        accelerator: Any,
        *,
        learning_rate: float,
        warmup: int,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ):
        self.role, self.network, self.parameters, self.accelerator = role, network, parameters, accelerator
        self.peak, self.warmup, self.max_grad_norm = learning_rate, warmup, max_grad_norm
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def update(self, step: int, micro_losses: list[Callable[[], MicroLoss]]) -> dict[str, float]:
        """Mean gradient over the micro-batches, clipped, one optimiser step; returns what to log.

        Raises FloatingPointError on every process, before any weight has changed, when a loss or the gradient of any
        process is not finite.
        """
        rows = []
        for i, micro_loss in enumerate(micro_losses):
            is_last = i + 1 == len(micro_losses)
            # Processes exchange gradients once per update, with the last micro-batch.
            with nullcontext() if is_last else self.accelerator.no_sync(self.network):
                result = micro_loss()
                self.accelerator.backward(result.total / len(micro_losses))
            rows.append(result.parts | result.health)
        log = mean_of(rows)
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)))
        log[f"grad_norm/{self.role}"] = norm
        self._refuse_non_finite(step, log)
        rate = learning_rate_at(step, self.peak, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return log

    def _refuse_non_finite(self, step: int, log: dict[str, float]) -> None:
        checked = {key: value for key, value in log.items() if key.startswith(("loss/", "grad_norm/"))}
        bad = {key: value for key, value in checked.items() if not isfinite(value)}
        flag = torch.tensor([float(bool(bad))], device=self.accelerator.device)
        if not self.accelerator.reduce(flag, reduction="sum").item():
            return
        self.optimizer.zero_grad(set_to_none=True)
        seen = ", ".join(f"{key} = {value}" for key, value in bad.items()) or "on another process"
        raise FloatingPointError(
            f"the {self.role} update of step {step + 1} is not finite ({seen}); its weights are unchanged and the last "
            f"checkpoint stays. Try a lower train.learning_rate or train.fake_learning_rate, a longer train.warmup, a "
            f'smaller train.max_grad_norm, or train.precision = "fp32"'
        )
