"""The perceptual rival: the student's picture is pulled to the teacher's from the same noise, as in the first DMD."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpdmd.method.guidance import Guidance
from dpdmd.method.objective import StudentStep, Term, TermResult
from dpdmd.method.rollout import GuidedTeacher


@dataclass(frozen=True)
class Pictures:
    """How latents become pictures.

    decode: latents (B, C, H, W) -> (B, 3, height, width) in [-1, 1]. size: (height, width) in pixels. one_by_one:
    decode and compare one picture at a time, and again in the backward pass, so that the activations of one are in
    memory at a time.
    """

    decode: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    one_by_one: bool = False


@dataclass(frozen=True, kw_only=True)
class Perceptual(Term):
    """L_lpips = mean d(decode(x_student), decode(x_teacher)) (arXiv 2311.18828, eq. 9; DMD-LPIPS of arXiv 2602.03139).

    x_teacher: the guided teacher's whole rollout on its own grid, `num_teacher_steps` long, from the noise and prompts
    of the student's samples; `StudentStep.teacher_x0` where it is known already. The student alone receives gradient,
    through autoencoder and backbone, in every step that its rollout kept.

    distance: pictures (B, 3, H, W) in [-1, 1] twice -> (B,). is_kept: whether teacher_x0 is known in every update but
    the first ones.
    """

    guidance: Guidance
    num_teacher_steps: int
    distance: Callable[[Tensor, Tensor], Tensor]
    pictures: Pictures
    is_kept: bool = False
    name: ClassVar[str] = "perceptual"

    @property
    def num_forwards(self) -> int:
        """The teacher's rollout, unless its samples are kept; autoencoder and backbone are not counted."""
        return 0 if self.is_kept else self.guidance.num_forwards * self.num_teacher_steps

    @property
    def network(self) -> nn.Module | None:
        """The backbone, if the distance has one."""
        return getattr(self.distance, "network", None)

    def __call__(self, step: StudentStep) -> TermResult:
        x, x_teacher = step.rollout.x0, step.teacher_x0
        if x_teacher is None:
            teacher = GuidedTeacher(step.teacher, step.path, step.teacher_grid, self.guidance)
            x_teacher = teacher.rollout(step.noise, step.cond, step.uncond)
        if self.pictures.one_by_one:
            pairs = zip(x.split(1), x_teacher.split(1), strict=True)
            distances = torch.cat([checkpoint(self._distances, *pair, use_reentrant=False) for pair in pairs])
        else:
            distances = self._distances(x, x_teacher)
        return TermResult(distances.mean())

    def _distances(self, x: Tensor, x_teacher: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.pictures.decode(x_teacher)
        return self.distance(self.pictures.decode(x), target)
