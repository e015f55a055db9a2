"""One update of each role: the losses as functions of a micro-batch, and the step they share."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpdmd.distributed.wrapping import whole
from dpdmd.method.denoiser import Denoiser
from dpdmd.method.discriminator import Discriminator
from dpdmd.method.grids import Grid, jittered, sample_times
from dpdmd.method.losses import denoising_loss
from dpdmd.method.objective import Objective, StudentStep
from dpdmd.method.paths import Path, add_noise
from dpdmd.method.roles import Role
from dpdmd.method.rollout import StudentKind, StudentRollout, last_steps, student_rollout
from dpdmd.method.terms.anchor import ANCHOR
from dpdmd.training.data import MicroBatch
from dpdmd.training.health import mean_of, sample_health

# What has an optimiser: the trained roles, and beside them the head of an adversarial objective.
Trained = Role | Literal["discriminator"]


@dataclass(frozen=True)
class Players:
    """The three denoisers, the path they share and the grids that student and teacher take along it.

    random_step: train x0 of one random step instead of the end of the whole rollout; a re-noising student always does.
    time_jitter: how far beside its time step 1 may land while training.
    """

    student: Denoiser
    teacher: Denoiser
    fake_score: Denoiser
    path: Path
    prediction_space: str
    student_grid: Grid
    teacher_grid: Grid
    student_kind: StudentKind = "ode"
    random_step: bool = False
    time_jitter: float = 0.0
    discriminator: Discriminator | None = None


@dataclass(frozen=True)
class TauRange:
    """Noise levels at which scores are compared and the fake score is trained."""

    low: float
    high: float
    shift: float


@dataclass(frozen=True)
class MicroLoss:
    """`total` is what backward starts from; `log` detached scalars: unweighted losses, health.

    They stay on the device until the whole update is done: reading one would make the device wait.
    """

    total: Tensor
    log: dict[str, Tensor]


def rollout_student(
    players: Players, batch: MicroBatch, *, detach_after: int = 0, is_anchored: bool = True
) -> tuple[StudentRollout, Grid]:
    """The student's samples of a micro-batch, of the whole rollout or each of one random step, and the grid taken.

    The random steps are behind `detach_after`, so that none is one that DMD must not reach.
    """
    grid, fresh_noise, last = players.student_grid, None, None
    if players.time_jitter:
        grid = jittered(grid, players.time_jitter, batch.rng("time_jitter"))
    if players.student_kind == "renoise":
        rng = batch.rng("renoise")

        def fresh_noise(i: int) -> Tensor:
            return torch.randn(batch.noise.shape, generator=rng).to(batch.noise.device)

    if players.student_kind == "renoise" or players.random_step:
        last = last_steps(batch.levels, detach_after, grid.num_steps)
    rollout = student_rollout(
        players.student,
        players.path,
        batch.noise,
        batch.cond,
        grid=grid,
        detach_after=detach_after,
        fresh_noise=fresh_noise,
        last_steps=last,
        is_anchored=is_anchored,
    )
    return rollout, grid


@torch.no_grad()
def draw_samples(players: Players, batch: MicroBatch, *, detach_after: int = 0) -> Tensor:
    """x0 (B, C, H, W) of the student for the fake score to learn. `detach_after`: the objective's.

    So the samples of a student that is trained at random steps are of the steps that DMD trains.
    """
    return rollout_student(players, batch, detach_after=detach_after)[0].x0


def fake_score_loss(
    players: Players, batch: MicroBatch, x0: Tensor, tau_range: TauRange, *, stream: str = "denoising"
) -> MicroLoss:
    """L_fake (arXiv 2405.14867, sec. 3): the fake score denoises the student's samples x0 of `batch`, tau per sample.

    The samples have no graph: the fake score alone receives gradient. `stream` names tau and noise, which differ for
    every update that uses the same samples.
    """
    rng = batch.rng(stream)
    tau = sample_times(len(x0), rng, low=tau_range.low, high=tau_range.high, shift=tau_range.shift).to(x0.device)
    eps = torch.randn(x0.shape, generator=rng).to(x0.device)
    prediction = players.fake_score(add_noise(players.path, x0, eps, tau), tau, batch.cond)
    loss = denoising_loss(prediction, x0, eps, players.prediction_space, players.path, tau)
    return MicroLoss(loss, {"loss/fake_score": loss.detach()})


def student_loss(
    players: Players, batch: MicroBatch, objective: Objective, *, step: int = 0, teacher_x0: Tensor | None = None
) -> MicroLoss:
    """Sum of weight * term over one rollout that is cut behind step `detach_after`; the student receives gradient.

    step: student updates done so far, for terms that begin later. teacher_x0: the guided teacher's samples from the
    noise of `batch`, where they are kept.
    """
    is_anchored = objective.is_due(ANCHOR, step)
    rollout, grid = rollout_student(players, batch, detach_after=objective.detach_after, is_anchored=is_anchored)
    seen = StudentStep(
        rollout=rollout,
        noise=batch.noise,
        cond=batch.cond,
        uncond=batch.uncond,
        teacher=players.teacher,
        fake_score=players.fake_score,
        path=players.path,
        student_grid=grid,
        teacher_grid=players.teacher_grid,
        prediction_space=players.prediction_space,
        rng=batch.rng,
        teacher_x0=teacher_x0,
        discriminator=players.discriminator,
    )
    results = {term.name: (weight, term(seen)) for weight, term in objective.weighted(step)}
    log = {f"loss/{name}": result.loss.detach() for name, (_, result) in results.items()}
    log |= {f"health/{key}": value for _, result in results.values() for key, value in result.health.items()}
    log |= {f"sample/{key}": value for key, value in sample_health(rollout.x0).items()}
    return MicroLoss(sum(weight * result.loss for weight, result in results.values()), log)


def learning_rate_at(step: int, peak: float, warmup: int) -> float:
    """Linear warm-up: peak (step + 1) / warmup until it is reached; `step` counts student updates from 0."""
    return peak * min(1.0, (step + 1) / max(warmup, 1))


class Updater:
    """The optimiser of a role, or of the discriminator, and the one way its weights change."""

    def __init__(
        self,
        role: Trained,
        network: nn.Module,
        parameters: dict[str, nn.Parameter],
        accelerator: Any,
        *,
        learning_rate: float,
        warmup: int,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ):
        self.role, self.network, self.named_parameters, self.accelerator = role, network, parameters, accelerator
        self.parameters = list(parameters.values())
        self.peak, self.warmup, self.max_grad_norm = learning_rate, warmup, max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )

    def update(self, step: int, micro_losses: list[Callable[[], MicroLoss]]) -> dict[str, float]:
        """Mean gradient over the micro-batches, clipped, one optimiser step; returns what to log.

        Raises FloatingPointError on every process, before any weight has changed, when a loss or the gradient of any
        process is not finite.
        """
        logs = []
        for i, micro_loss in enumerate(micro_losses):
            is_last = i + 1 == len(micro_losses)
            # Processes exchange gradients once per update, with the last micro-batch.
            with nullcontext() if is_last else self.accelerator.no_sync(self.network):
                result = micro_loss()
                self.accelerator.backward(result.total / len(micro_losses))
            logs.append(result.log)
        norm = whole(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))
        log = mean_of([log | {f"grad_norm/{self.role}": norm} for log in logs])
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
        rates = "objective.adversarial.learning_rate"
        if self.role != "discriminator":
            rates = "train.learning_rate or train.fake_learning_rate"
        seen = ", ".join(f"{key} = {value}" for key, value in bad.items()) or "on another process"
        raise FloatingPointError(
            f"the {self.role} update of step {step + 1} is not finite ({seen}); its weights are unchanged and the last "
            f"checkpoint stays. Try a lower {rates}, a longer train.warmup, a smaller train.max_grad_norm, or "
            'train.precision = "fp32"'
        )
