"""The losses of an update as functions of a micro-batch: which role learns what from which samples."""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from dpdmd.method.denoiser import Denoiser
from dpdmd.method.devices import to_device
from dpdmd.method.discriminator import Discriminator
from dpdmd.method.grids import sample_times
from dpdmd.method.losses import denoising_loss
from dpdmd.method.objective import StudentStep
from dpdmd.method.paths import add_noise
from dpdmd.method.rollout import StudentRollout, renoise_by
from dpdmd.models.sampling import student_rollout
from dpdmd.recipe.plan import Plan
from dpdmd.training.data import MicroBatch
from dpdmd.training.health import sample_health


@dataclass(frozen=True)
class Denoisers:
    """The three roles as denoisers, and the discriminator of an objective that trains one."""

    student: Denoiser
    teacher: Denoiser
    fake_score: Denoiser
    discriminator: Discriminator | None = None


@dataclass(frozen=True)
class MicroLoss:
    """total: the loss to backpropagate; log: detached scalars (unweighted losses, health); x0: the student's samples
    (B, C, H, W) if it drew any, without graph.

    They stay on the device until the whole update is done: reading one would make the CPU wait for the device.
    """

    total: Tensor
    log: dict[str, Tensor]
    x0: Tensor | None = None


def training_rollout(student: Denoiser, plan: Plan, batch: MicroBatch, *, num_first: int = 0) -> StudentRollout:
    """The student's samples of a micro-batch as the plan trains them: from the whole rollout or from one random step.

    The random step is never the anchored one, which DMD must not train. num_first: of how many samples step 1 keeps its
    graph, if it is anchored.
    """
    grid, detach_first = plan.student.grid, plan.objective.detach_first
    rng = batch.rng("renoise")

    def draw() -> Tensor:
        return to_device(torch.randn(batch.noise.shape, generator=rng), batch.noise.device)

    return student_rollout(
        student,
        plan.path,
        batch.noise,
        batch.cond,
        grid=grid,
        detach_first=detach_first,
        last_steps=last_steps(batch.levels, int(detach_first), grid.num_steps) if plan.student.is_simulated else None,
        renoise=renoise_by(plan.student.kind, grid, draw),
        num_first=num_first,
    )


def last_steps(levels: Tensor, start: int, num_steps: int) -> list[int]:
    """One of the steps start + 1 ... num_steps for each sample, all equally likely, from levels (B,) in [0, 1)."""
    number = num_steps - start
    return (start + 1 + (levels * number).long().clamp(max=number - 1)).tolist()


@torch.no_grad()
def draw_samples(student: Denoiser, plan: Plan, batch: MicroBatch) -> Tensor:
    """The student's x0 (B, C, H, W) for the fake score to learn, from the steps that the objective trains."""
    return training_rollout(student, plan, batch).x0


def fake_score_loss(
    denoisers: Denoisers, plan: Plan, batch: MicroBatch, x0: Tensor, *, stream: str = "denoising"
) -> MicroLoss:
    """L_fake (arXiv 2405.14867, sec. 3): the fake score denoises the student's samples x0 of `batch`, tau per sample.

    The samples have no graph: only the fake score receives gradient. stream: names the draws of tau and noise, which
    differ between updates on the same samples.
    """
    rng, noise_levels = batch.rng(stream), plan.tau_range
    tau = sample_times(len(x0), rng, low=noise_levels.low, high=noise_levels.high, shift=noise_levels.shift)
    tau, eps = to_device(tau, x0.device), to_device(torch.randn(x0.shape, generator=rng), x0.device)
    prediction = denoisers.fake_score(add_noise(plan.path, x0, eps, tau), tau, batch.cond)
    loss = denoising_loss(prediction, x0, eps, plan.prediction_space, plan.path, tau)
    return MicroLoss(loss, {"loss/fake_score": loss.detach()})


def student_loss(
    denoisers: Denoisers, plan: Plan, batch: MicroBatch, *, step: int = 0, teacher_x0: Tensor | None = None
) -> MicroLoss:
    """Sum of weight * loss over the terms that are due, on one rollout; only the student receives gradient.

    step: student updates done so far; some terms are not due in every update. teacher_x0: the guided teacher's samples
    from the noise of `batch`, if they are kept on disk.
    """
    due = plan.objective.due(step)
    num_first = max(term.num_first(len(batch.noise), batch.number) for _, term in due)
    rollout = training_rollout(denoisers.student, plan, batch, num_first=num_first)
    seen = StudentStep(
        rollout=rollout,
        noise=batch.noise,
        cond=batch.cond,
        uncond=batch.uncond,
        teacher=denoisers.teacher,
        fake_score=denoisers.fake_score,
        path=plan.path,
        student_grid=plan.student.grid,
        teacher_grid=plan.teacher.grid,
        prediction_space=plan.prediction_space,
        rng=batch.rng,
        samples_per_prompt=plan.data.samples_per_prompt,
        teacher_x0=teacher_x0,
        discriminator=denoisers.discriminator,
    )
    results = {term.name: (weight, term(seen)) for weight, term in due}
    log = {f"loss/{name}": result.loss.detach() for name, (_, result) in results.items()}
    log |= {f"health/{key}": value for _, result in results.values() for key, value in result.health.items()}
    log |= {f"sample/{key}": value for key, value in sample_health(rollout.x0).items()}
    total = reduce(add, (weight * result.loss for weight, result in results.values()))
    return MicroLoss(total, log, rollout.x0.detach())
