"""What a teacher changes in a picture, on Gaussian data where it is known in closed form."""

import pytest
import torch

from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath
from dpdmd.method.randomness import generator
from dpdmd.method.residual import denoised, residual
from dpdmd.method.rollout import GuidedTeacher


def test_the_residual_is_that_of_the_optimal_denoiser(exact_gaussian, prompts):
    """x0_hat = m + a s^2 (x_tau - a m) / (a^2 s^2 + b^2), with m = u + w (c - u) the guided mean."""
    std, tau, scale = 0.5, 0.3, 2.0
    teacher = GuidedTeacher(exact_gaussian(FlowPath(), std), FlowPath(), Grid((1.0, 0.0)), Guidance(scale))
    x0, noise = (torch.randn(3, 4, 2, 2, generator=generator(0, name)) for name in ("x0", "noise"))
    cond, uncond = prompts([1.0, -1.0, 0.5]), prompts([0.2, 0.2, 0.2])
    found = denoised(teacher, x0, noise, cond, uncond, tau=tau)
    mean = (0.2 + scale * (torch.tensor([1.0, -1.0, 0.5]) - 0.2)).reshape(3, 1, 1, 1)
    x_tau = (1 - tau) * x0 + tau * noise
    gain = (1 - tau) * std**2 / ((1 - tau) ** 2 * std**2 + tau**2)
    expected = mean + gain * (x_tau - (1 - tau) * mean)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(residual(x0, found), ((expected - x0) ** 2).mean((1, 2, 3)))


@pytest.mark.parametrize("away", [0.5, 2.0])
def test_a_sample_that_the_teacher_would_not_draw_is_changed_more(exact_gaussian, prompts, away):
    teacher = GuidedTeacher(exact_gaussian(FlowPath(), 0.3), FlowPath(), Grid((1.0, 0.0)), Guidance(1.0))
    likely, noise = (torch.randn(64, 1, 4, 4, generator=generator(0, name)) for name in ("likely", "noise"))
    cond = prompts([1.0] * 64)
    ours, others = (
        residual(x0, denoised(teacher, x0, noise, cond, cond)).mean()
        for x0 in (1 + 0.3 * likely, 1 + away + 0.3 * likely)
    )
    assert others > 1.2 * ours
