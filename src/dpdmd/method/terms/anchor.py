"""The diversity anchor of DP-DMD: step 1 of the student learns where the guided teacher gets from the same noise."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from dpdmd.method.grids import coarsen
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.losses import anchor_loss
from dpdmd.method.objective import StudentStep, Term, TermResult
from dpdmd.method.paths import secant
from dpdmd.method.rollout import GuidedTeacher

AnchorTarget = Literal["secant", "x0"]


@dataclass(frozen=True, kw_only=True)
class DiversityAnchor(Term):
    """L_div (arXiv 2602.03139): `num_steps` = K guided teacher steps from the student's noise, then target prediction.

    z_K is where the teacher gets from z_0. Step 1 of the student alone receives gradient: its prediction at z_0 is
    compared with

    - "secant": the line from z_0 to z_K, on a flow v* = (z_0 - z_K) / (sigma_0 - sigma_K), in the network's own
      prediction space;
    - "x0": x~ = (z_K - sigma_K eps_teacher(z_K, t_K)) / alpha_K, the guided teacher's x0 at z_K, in x0 space (the
      paper's form for noise prediction), at one more guided teacher call.

    Both agree where the teacher's trajectory is straight. The student's squared error in x0 space is
    (sigma_0 / alpha_0)^2 times its error in eps space, 213.6 at SDXL's noisiest timestep (abar = 0.00466): one `weight`
    has another strength there. On a flow from t_0 = 1 it equals the error of the velocity.

    coarse_steps, second_order: take the segment in fewer steps of the teacher's grid, and let each use the prediction
    before it; z_K is then approximate, and cheaper. fraction: of the samples that are anchored; the loss keeps its mean
    weight. The rollout must be anchored (`Objective.detach_first`).
    """

    guidance: Guidance
    num_steps: int
    target: AnchorTarget = "secant"
    coarse_steps: int | None = None
    second_order: bool = False
    fraction: float = 1.0
    name: ClassVar[str] = "anchor"
    trains_first_step: ClassVar[bool] = True

    def num_first(self, batch_size: int, number: int) -> int:
        """`fraction` of the samples on average: n(number + 1) - n(number), n(i) = floor(i * fraction * batch_size)."""
        before, after = (int(i * self.fraction * batch_size + 1e-6) for i in (number, number + 1))
        return after - before

    @property
    def num_forwards(self) -> float:
        """The guided teacher steps, and one more for the target "x0", of the samples that are anchored."""
        steps = min(self.num_steps, self.coarse_steps or self.num_steps)
        return self.fraction * self.guidance.num_forwards * (steps + (self.target == "x0"))

    def __call__(self, step: StudentStep) -> TermResult:
        first, batch_size = step.rollout.first, len(step.noise)
        if first is None:
            return TermResult(step.rollout.x0.new_zeros(()))
        step = step.of_first(len(first.x0))
        grid, k = coarsen(step.teacher_grid, self.num_steps, self.coarse_steps or self.num_steps)
        if not step.student_grid.times[0] > grid.times[k]:
            raise ValueError(
                f"the anchor is at t = {grid.times[k]:g}, and the student starts at {step.student_grid.times[0]:g}"
            )
        teacher = GuidedTeacher(step.teacher, step.path, grid, self.guidance)
        z_k = teacher.rollout(step.noise, step.cond, step.uncond, stop_after=k, second_order=self.second_order)
        t_0, t_k = step.student_grid.time(0, z_k), grid.time(k, z_k)
        if self.target == "secant":
            target, space = secant(step.path, step.noise, t_0, z_k, t_k), step.prediction_space
        else:
            with torch.no_grad():
                target, space = guided(step.teacher, z_k, t_k, step.cond, step.uncond, self.guidance), "x0"
        share = len(first.x0) / (self.fraction * batch_size)  # 1 on average
        return TermResult(share * anchor_loss(first, target, space, step.path, t_0))
