import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dpdmd.method.losses import (
    anchor_loss,
    denoising_loss,
    dmd_gradient,
    dmd_loss,
)
from dpdmd.method.paths import FlowPath, Prediction, VPPath, add_noise, from_eps, from_velocity

# SDXL's noise schedule, by hand.
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
VP, T = VPPath(torch.from_numpy(ALPHAS_CUMPROD)), torch.tensor([0.3, 0.3, 0.3])
ALPHA, SIGMA = np.sqrt(ALPHAS_CUMPROD[299]), np.sqrt(1 - ALPHAS_CUMPROD[299])
# The squared error of a prediction that is .5 off in x0 and .3 off in eps.
ERRORS = [
    ("velocity", (0.3 - 0.5) ** 2),
    ("eps", 0.3**2),
    ("x0", 0.5**2),
    ("v", (ALPHA * 0.3 - SIGMA * 0.5) ** 2),
]


@pytest.fixture
def predictions(randn):
    """Student samples, x_tau, teacher and fake score; B = W, so that a norm along the wrong axis would show."""
    shape = (4, 2, 3, 4)
    x, x_tau, *rest = (randn(i, *shape) * (1 + torch.arange(4.0).reshape(4, 1, 1, 1)) for i in range(6))
    return x, x_tau, Prediction(*rest[:2]), Prediction(*rest[2:])


def test_derivative_of_the_dmd_loss_is_the_gradient_over_numel(randn):
    x, g = randn(0, 3, 2, 4, 4).requires_grad_(), randn(1, 3, 2, 4, 4).requires_grad_()
    dmd_loss(x, g).backward()
    assert_close(x.grad, g.detach() / x.numel(), atol=1e-8, rtol=1e-5)
    assert g.grad is None


def test_dmd_loss_is_half_the_mean_square_of_the_gradient(randn):
    x, g = randn(0, 3, 2, 4, 4), randn(1, 3, 2, 4, 4)
    assert dmd_loss(x, g).item() == pytest.approx(0.5 * (g**2).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("normalisation", "reference"), [("dmd2", 0), ("dpdmd", 1)])
def test_dmd_gradient_matches_numpy(normalisation, reference, predictions):
    x, x_tau, real, fake = predictions
    expected = np.empty(x.shape, dtype=np.float64)
    for i in range(len(x)):
        away = (predictions[reference][i] - real.x0[i]).double().numpy()
        expected[i] = (fake.x0[i] - real.x0[i]).double().numpy() / np.abs(away).mean()
    g = dmd_gradient(x, x_tau, real, fake, normalisation)
    assert_close(g.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_dmd_gradient_is_zero_when_fake_equals_teacher(normalisation, predictions):
    x, x_tau, real, _ = predictions
    assert torch.equal(dmd_gradient(x, x_tau, real, real, normalisation), torch.zeros_like(x))


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_dmd_gradient_of_a_perfect_sample_is_finite(normalisation, predictions):
    x, x_tau, _, _ = predictions
    perfect = Prediction({"dmd2": x, "dpdmd": x_tau}[normalisation], x)  # the norm is 0
    assert dmd_gradient(x, x_tau, perfect, perfect, normalisation).isfinite().all()


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_dmd_gives_no_gradient_to_teacher_or_fake_score(normalisation, predictions):
    x, x_tau, real, fake = predictions
    leaves = [x_tau, real.x0, real.eps, fake.x0, fake.eps]
    for leaf in [x, *leaves]:
        leaf.requires_grad_()
    gradient = dmd_gradient(x, x_tau, real, fake, normalisation)
    assert not gradient.requires_grad
    dmd_loss(x, gradient).backward()
    assert x.grad is not None and all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("tau", [0.02, 0.3, 0.98])
def test_on_a_flow_the_dpdmd_gradient_is_the_normalised_difference_of_velocities(tau, randn):
    x_tau, v_real = randn(0, 2, 2, 8, 8), randn(1, 2, 2, 8, 8)
    v_fake = v_real + 0.05 * randn(2, 2, 2, 8, 8)
    t = torch.full((2,), tau)
    g = dmd_gradient(
        torch.zeros_like(x_tau), x_tau, from_velocity(x_tau, v_real, t), from_velocity(x_tau, v_fake, t), "dpdmd"
    )
    expected = (v_real - v_fake) / v_real.abs().mean(dim=(1, 2, 3), keepdim=True)
    # x0 of size 1 carries 1e-7 of rounding, which the norm, of size tau, divides.
    assert_close(g, expected, atol=5e-7 / tau, rtol=0)


def test_on_a_vp_path_the_dpdmd_gradient_is_the_normalised_difference_of_eps_at_low_noise(randn):
    x_tau, eps_real = randn(0, 2, 2, 8, 8), randn(1, 2, 2, 8, 8)
    eps_fake = eps_real + 0.5 * randn(2, 2, 2, 8, 8)
    t = torch.tensor([0.001, 0.002])
    g = dmd_gradient(x_tau, x_tau, from_eps(VP, x_tau, eps_real, t), from_eps(VP, x_tau, eps_fake, t), "dpdmd")
    expected = (eps_real - eps_fake) / eps_real.abs().mean(dim=(1, 2, 3), keepdim=True)
    # The norm is of sigma eps - (1 - alpha) x0, and 1 - alpha is sigma^2 / 2: sigma = .03 and .04 here.
    assert_close(g, expected, atol=0.01, rtol=0.04)


@pytest.mark.parametrize("time", [0.1, 0.75, 1.0])
def test_errors_of_one_noisy_sample_are_proportional_across_spaces(time, randn):
    x_t, t = randn(0, 3, 2, 4, 4).double(), torch.full((3,), time)
    one, other = (from_eps(VP, x_t, randn(i, 3, 2, 4, 4), t) for i in (1, 2))
    in_eps, in_x0, in_v = (anchor_loss(one, other, space, VP, t).item() for space in ("eps", "x0", "v"))
    abar = ALPHAS_CUMPROD[round(1000 * time) - 1]
    assert in_x0 == pytest.approx(in_eps * (1 - abar) / abar, rel=1e-4)
    assert in_v == pytest.approx(in_eps / abar, rel=1e-4)
    if time == 1:
        assert in_x0 / in_eps == pytest.approx(213.6, abs=0.05)


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
@pytest.mark.parametrize(("mean_real", "mean_fake"), [(2.0, -1.0), (-2.0, 1.0)])
def test_a_descent_step_moves_samples_toward_the_teacher(
    normalisation, mean_real, mean_fake, exact_gaussian, prompts, randn
):
    x = (mean_fake + randn(0, 64, 1, 2, 2)).requires_grad_()
    tau = torch.linspace(0.05, 0.95, 64)
    x_tau, score = add_noise(FlowPath(), x, randn(1, 64, 1, 2, 2), tau), exact_gaussian(FlowPath(), 1.0)
    real, fake = score(x_tau, tau, prompts([mean_real] * 64)), score(x_tau, tau, prompts([mean_fake] * 64))
    dmd_loss(x, dmd_gradient(x, x_tau, real, fake, normalisation)).backward()
    toward = np.sign(mean_real - mean_fake)
    assert bool((-toward * x.grad > 0).all())  # equal widths: every sample moves the same way


@pytest.mark.parametrize(("space", "expected"), ERRORS)
def test_denoising_loss_is_the_squared_error_in_its_space(space, expected, randn):
    x0, eps = randn(0, 3, 2, 4, 4), randn(1, 3, 2, 4, 4)
    assert denoising_loss(Prediction(x0, eps), x0, eps, space, VP, T) == 0
    off = Prediction(x0 + 0.5, eps + 0.3)
    assert denoising_loss(off, x0, eps, space, VP, T).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("space", ["velocity", "eps", "x0", "v"])
def test_denoising_loss_reaches_the_prediction_and_not_the_samples(space, randn):
    x0, eps = randn(0, 3, 2, 4, 4).requires_grad_(), randn(1, 3, 2, 4, 4)
    predicted = Prediction(randn(2, 3, 2, 4, 4).requires_grad_(), randn(3, 3, 2, 4, 4).requires_grad_())
    denoising_loss(predicted, x0, eps, space, VP, T).backward()
    assert x0.grad is None
    moved = {"velocity": (True, True), "eps": (False, True), "x0": (True, False), "v": (True, True)}[space]
    assert (predicted.x0.grad is not None, predicted.eps.grad is not None) == moved


@pytest.mark.parametrize(("space", "expected"), ERRORS)
def test_anchor_loss_is_zero_at_the_secant_and_the_squared_error_elsewhere(space, expected, randn):
    target = Prediction(randn(0, 3, 2, 4, 4), randn(1, 3, 2, 4, 4))
    assert anchor_loss(target, target, space, VP, T) == 0
    off = Prediction(target.x0 + 0.5, target.eps + 0.3)
    assert anchor_loss(off, target, space, VP, T).item() == pytest.approx(expected, rel=1e-5)


def test_anchor_loss_pulls_the_first_prediction_and_not_the_target(randn):
    first = Prediction(randn(0, 3, 2, 4, 4).requires_grad_(), randn(1, 3, 2, 4, 4).requires_grad_())
    target = Prediction(randn(2, 3, 2, 4, 4).requires_grad_(), randn(3, 3, 2, 4, 4).requires_grad_())
    anchor_loss(first, target, "velocity", FlowPath(), torch.ones(3)).backward()
    expected = 2 * (first.velocity - target.velocity).detach() / first.x0.numel()
    assert_close(first.eps.grad, expected)
    assert_close(first.x0.grad, -expected)
    assert target.x0.grad is None and target.eps.grad is None


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_losses_are_fp32_for_bf16_samples(normalisation, predictions):
    x, x_tau, real, fake = predictions
    g = dmd_gradient(x.bfloat16(), x_tau.bfloat16(), real, fake, normalisation)
    assert g.dtype == torch.float32 and dmd_loss(x.bfloat16(), g).dtype == torch.float32
