"""The diversity anchor of DP-DMD: the student's first step learns where the guided teacher gets from the same noise."""

from dataclasses import dataclass

from dpdmd.guidance import Guidance
from dpdmd.losses import anchor_loss
from dpdmd.objectives.base import StudentStep, TermResult
from dpdmd.paths import secant
from dpdmd.rollout import teacher_rollout


@dataclass(frozen=True)
class DiversityAnchor:
    """L_div (arXiv 2602.03139): K guided teacher steps from the student's noise, then target prediction.

    z_K = teacher from z_0; v* = (z_0 - z_K) / (sigma_0 - sigma_K), on any path the secant; the loss compares the
    student's first prediction with it in the network's own space. Step 1 of the student alone receives gradient.
    """

    guidance: Guidance
    num_steps: int
    weight: float
    name: str = "anchor"

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
        target = secant(step.path, z_0, grid.time(0, z_0), z_k, grid.time(self.num_steps, z_0))
        return TermResult(anchor_loss(step.rollout.first, target, step.prediction_space), {})
