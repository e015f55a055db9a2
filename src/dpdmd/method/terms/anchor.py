"""The diversity anchor of DP-DMD: the student's first step learns where the guided teacher gets from the same noise."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from dpdmd.method.grids import coarsen
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.losses import anchor_loss, variation_loss
from dpdmd.method.objective import StudentStep, TermResult
from dpdmd.method.paths import secant
from dpdmd.method.rollout import teacher_rollout

AnchorTarget = Literal["secant", "x0"]
ANCHOR = "anchor"  # name of the term


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

    `stops` = (K_1, ..., K_m): for m > 1 student step i learns in the same way to get from where it starts, its own
    state z_{i-1}, to where the teacher is after K_i steps; the loss is the mean over the m steps, each of which gets
    its own gradient. The rollout must be cut behind m steps.

    `coarse_steps`, `second_order`: the way to each stop in fewer steps of the teacher's grid, or in such that use the
    step before; z_K is then approximate, and cheaper.

    `variation_weight`: of the mean of `losses.variation_loss` over the stops, which compares how the samples of one
    prompt, `samples_per_prompt` of them, differ from each other, whatever they have in common.
    """

    guidance: Guidance
    stops: tuple[int, ...]
    weight: float
    target: AnchorTarget = "secant"
    coarse_steps: int | None = None
    second_order: bool = False
    variation_weight: float = 0.0
    samples_per_prompt: int = 1
    name: str = ANCHOR

    @property
    def num_forwards(self) -> int:
        """The guided teacher steps, and one more per stop for what the teacher believes there."""
        starts = (0, *self.stops)
        steps = sum(min(b - a, self.coarse_steps or b - a) for a, b in pairwise(starts))
        return self.guidance.num_forwards * (steps + (len(self.stops) if self.target == "x0" else 0))

    def __call__(self, step: StudentStep) -> TermResult:
        grid, stops = step.teacher_grid, self.stops
        if self.coarse_steps is not None:
            grid, stops = coarsen(grid, stops, self.coarse_steps)
        losses, variations, z, start = [], [], step.noise, 0
        for i, stop in enumerate(stops):
            z = teacher_rollout(
                step.teacher,
                step.path,
                z,
                step.cond,
                step.uncond,
                grid=grid,
                guidance=self.guidance,
                start=start,
                stop_after=stop,
                second_order=self.second_order,
            )
            start = stop
            t, t_k = step.student_grid.time(i, z), grid.time(stop, z)
            if self.target == "secant":
                target, space = secant(step.path, step.rollout.states[i], t, z, t_k), step.prediction_space
            else:
                with torch.no_grad():
                    target, space = guided(step.teacher, z, t_k, step.cond, step.uncond, self.guidance), "x0"
            prediction = step.rollout.predictions[i]
            losses.append(anchor_loss(prediction, target, space, step.path, t))
            if self.variation_weight:
                variations.append(variation_loss(prediction.x0, target.x0, self.samples_per_prompt))
        loss = sum(losses) / len(losses)
        if not variations:
            return TermResult(loss, {})
        variation = sum(variations) / len(variations)
        return TermResult(loss + self.variation_weight * variation, {"variation": variation.detach()})
