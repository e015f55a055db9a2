"""What a teacher would still change in a picture: a measure of quality that needs no network but the teacher."""

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition
from dpdmd.method.guidance import guided
from dpdmd.method.paths import add_noise
from dpdmd.method.rollout import GuidedTeacher

TAU = 0.3  # the noise level at which validation asks; measured by benchmarks/in_run_quality.py


@torch.no_grad()
def denoised(
    teacher: GuidedTeacher, x0: Tensor, noise: Tensor, cond: Condition, uncond: Condition, *, tau: float = TAU
) -> Tensor:
    """Each sample after noise of level tau was added and the guided teacher has removed it, (B, C, H, W) fp32.

        x0_hat(x_tau),   x_tau = alpha(tau) x0 + sigma(tau) noise

    x0, noise: (B, C, H, W); cond, uncond: B prompts; tau in (0, 1).
    """
    t = torch.full((len(x0),), tau, device=x0.device)
    x_t = add_noise(teacher.path, x0.float(), noise, t)
    return guided(teacher.denoise, x_t, t, cond, uncond, teacher.guidance).x0


def residual(x0: Tensor, x0_hat: Tensor) -> Tensor:
    """Mean squared change of each sample, mean |x0_hat - x0|^2, (B,).

    A sample that the teacher might have drawn for the prompt comes back nearly as it was; a flaw is corrected, and
    adds to it. x0, x0_hat: (B, C, H, W), `denoised` of x0.
    """
    return (x0_hat - x0).square().flatten(1).mean(1)
