"""The losses as pure functions: tensors in, scalar out, fp32, one line per symbol of the papers."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.method.paths import Path, Prediction, to_v

Space = Literal["velocity", "eps", "x0", "v"]
Normalisation = Literal["dmd2", "dpdmd"]


def in_space(prediction: Prediction, space: Space, path: Path, t: Tensor) -> Tensor:
    """The view of a prediction at t (B,) that a loss compares: velocity = eps - x0, v = alpha eps - sigma x0, eps, x0.

    Two predictions of one x_t differ by alpha dx0 = -sigma deps, so their squared errors in the four spaces are
    proportional: mean dx0^2 = (sigma / alpha)^2 mean deps^2, mean dv^2 = mean deps^2 / alpha^2.
    """
    return to_v(path, prediction, t) if space == "v" else getattr(prediction, space)


def dmd_gradient(
    x_student: Tensor, x_tau: Tensor, real: Prediction, fake: Prediction, normalisation: Normalisation
) -> Tensor:
    """The direction in which a DMD step moves the student's samples, negated: g = (x0_fake - x0_real) / norm.

    norm, one number per sample: "dmd2" mean |x_student - x0_real| (arXiv 2405.14867, after arXiv 2311.18828, eq. 8);
    "dpdmd" mean |x_tau - x0_real| (released code of arXiv 2602.03139), on a flow g = (v_real - v_fake) / mean |v_real|.
    On a variance-preserving path sigma cancels where alpha is near 1: g -> (eps_real - eps_fake) / mean |eps_real|.

    x_student, x_tau: (B, C, H, W); real: the guided teacher at x_tau; fake: the fake score there. Nothing receives
    gradient. Returns (B, C, H, W) fp32.
    """
    with torch.no_grad():
        reference = {"dmd2": x_student, "dpdmd": x_tau}[normalisation]
        norm = (reference.float() - real.x0).abs().mean(dim=(1, 2, 3), keepdim=True)
        return (fake.x0 - real.x0) / norm.clamp_min(1e-8)


def dmd_loss(x_student: Tensor, gradient: Tensor) -> Tensor:
    """0.5 mean (x - sg(x - g))^2, whose derivative by x is g / numel (arXiv 2311.18828, eq. 7).

    Only `x_student` receives gradient: the student, through the steps that its rollout kept.
    """
    return 0.5 * F.mse_loss(x_student.float(), (x_student.float() - gradient).detach())


def denoising_loss(prediction: Prediction, x0: Tensor, eps: Tensor, space: Space, path: Path, t: Tensor) -> Tensor:
    """mean (prediction - truth)^2 in the network's own prediction space: how the fake score learns the student.

    x0, eps: (B, C, H, W), the clean samples (detached by the caller) and the noise that was added at t (B,).
    """
    truth = Prediction(x0.detach().float(), eps.float())
    return F.mse_loss(in_space(prediction, space, path, t), in_space(truth, space, path, t))


def anchor_loss(first: Prediction, target: Prediction, space: Space, path: Path, t: Tensor) -> Tensor:
    """The diversity anchor, mean (student(z_0, t_0) - target)^2 in `space` (arXiv 2602.03139, on step 1 only).

    `first`: the student's prediction at the noise, receives gradient; `target`: the teacher's, detached; t: t_0 (B,).
    """
    return F.mse_loss(in_space(first, space, path, t), in_space(target, space, path, t).detach())
