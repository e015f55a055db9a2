"""The guided teacher's rollout in one call."""

from torch import Tensor

from dpdmd.method.rollout import GuidedTeacher


def teacher_rollout(denoise, path, noise, cond, uncond, *, grid, guidance, **options) -> Tensor:
    """z_K, by default x0."""
    return GuidedTeacher(denoise, path, grid, guidance).rollout(noise, cond, uncond, **options)
