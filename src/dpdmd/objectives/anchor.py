"""The diversity anchor of DP-DMD: the student's first step learns where the guided teacher gets from the same noise."""

from dataclasses import dataclass
from typing import Literal

import torch

from dpdmd.guidance import Guidance, guided
from dpdmd.losses import anchor_loss
from dpdmd.objectives.base import StudentStep, TermResult
from dpdmd.paths import secant
from dpdmd.rollout import teacher_rollout

AnchorTarget = Literal["secant", "x0"]


@dataclass(frozen=True)
class DiversityAnchor:
    """L_div (arXiv 2602.03139): K guided teacher steps from the student's noise, then target prediction.

    z_K = teacher from z_0. Step 1 of the student alone receives gradient: its prediction at z_0 is compared with

    - "secant": the one line from z_0 to z_K, on a flow v* = (z_0 - z_K) / (sigma_0 - sigma_K), in the network's own
      prediction space;
    - "x0": x~ = (z_K - sigma_K eps_teacher(z_K, t_K)) / alpha_K, what the guided teacher believes of z_K, in x0 space
      (the paper's form for noise prediction); one more guided teacher call.

    They agree where the teacher's way is straight. The student's squared error in x0 space is (sigma_0 / alpha_0)^2
    times its error in eps space: 213.6 at SDXL's noisiest timestep, where abar = .00466, so that one `weight` means
    another strength there. On a flow from t_0 = 1 it equals the error of the velocity.
    """

    guidance: Guidance
    num_steps: int
    weight: float
    target: AnchorTarget = "secant"
    name: str = "anchor"

    @property
    def num_forwards(self) -> int:
        """K guided teacher steps, and one more for what the teacher believes of z_K."""
        return self.guidance.num_forwards * (self.num_steps + (self.target == "x0"))

    def __call__(self, step: StudentStep) -> TermResult:
        z_0, grid = step.noise, step.teacher_grid
        z_k = teacher_rollout(
            step.teacher,
            step.path,
            z_0,
            step.cond,
            step.uncond,
            grid=grid,
            guidance=self.guidance,
            stop_after=self.num_steps,
        )
        t_0, t_k = grid.time(0, z_0), grid.time(self.num_steps, z_0)
        if self.target == "secant":
            target, space = secant(step.path, z_0, t_0, z_k, t_k), step.prediction_space
        else:
            with torch.no_grad():
                target, space = guided(step.teacher, z_k, t_k, step.cond, step.uncond, self.guidance), "x0"
        return TermResult(anchor_loss(step.rollout.first, target, space, step.path, t_0), {})
