import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from dpdmd.method.paths import (
    FlowPath,
    Prediction,
    VPPath,
    add_noise,
    from_eps,
    from_v,
    from_velocity,
    secant,
    step,
    to_v,
)

FLOW = FlowPath()


def ddim(prediction_type="epsilon", **settings):
    """SDXL's noise schedule. The last DDIM step lands on clean data only with set_alpha_to_one: our t = 0."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
        **settings,
    )


VP = VPPath(ddim().alphas_cumprod)


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_noising_uses_the_time_of_each_sample(path, randn):
    # B = C = W = 4: a t that broadcast along any other axis would give numbers instead of an error.
    x0, eps = randn(0, 4, 4, 2, 4), randn(1, 4, 4, 2, 4)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    if path is FLOW:
        alpha, sigma = 1 - t.numpy(), t.numpy()
    else:
        abar = VP.alphas_cumprod.numpy()[[99, 399, 699, 999]]
        alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    expected = np.stack([alpha[i] * x0[i].numpy() + sigma[i] * eps[i].numpy() for i in range(4)])
    assert_close(add_noise(path, x0, eps, t), torch.from_numpy(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_time_zero_is_data(path, randn):
    x0, eps = randn(0, 2, 3, 4, 4), randn(1, 2, 3, 4, 4)
    assert torch.equal(add_noise(path, x0, eps, torch.zeros(2)), x0)


def test_vp_time_one_is_the_noisiest_training_timestep():
    assert_close(VP.alpha(torch.ones(1)) ** 2, VP.alphas_cumprod[-1:])
    assert_close(VP.alpha(torch.tensor([0.001])) ** 2, VP.alphas_cumprod[:1])


def test_vp_knows_every_training_timestep_in_fp32():
    exact = ddim().alphas_cumprod.double()
    for t in (torch.arange(1, 1001) / 1000, torch.tensor([i / 1000 for i in range(1, 1001)])):
        assert t.dtype == torch.float32 and torch.equal(VP.index(t), torch.arange(1, 1001))
        assert_close(VP.alpha(t).double(), exact.sqrt(), atol=0, rtol=1e-7)
        assert_close(VP.sigma(t).double(), (1 - exact).sqrt(), atol=0, rtol=1e-7)


def test_a_time_between_two_timesteps_means_the_nearer_one():
    assert VP.index(torch.tensor([0.0004, 0.0006, 0.0014, 0.7496, 0.9994])).tolist() == [0, 1, 1, 750, 999]
    assert torch.equal(VP.sigma(torch.tensor([0.7496])), VP.sigma(torch.tensor([0.75])))


@pytest.mark.parametrize("shape", [(4,), (2, 1, 1, 1), (), (1,)])
def test_times_that_are_not_one_per_sample_are_refused(shape, randn):
    x = randn(0, 2, 3, 4, 4)  # (4,) is W: it would broadcast
    with pytest.raises(ValueError, match=r"t must have shape \(2,\), one time per sample"):
        add_noise(FLOW, x, x, torch.full(shape, 0.5))


def test_from_velocity_inverts_noising(randn):
    x0, eps, t = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3), torch.tensor([0.05, 0.5, 1.0])
    prediction = from_velocity(add_noise(FLOW, x0, eps, t), eps - x0, t)
    assert_close(prediction.x0, x0)
    assert_close(prediction.eps, eps)
    assert_close(prediction.velocity, eps - x0)


def test_from_eps_inverts_noising(randn):
    x0, eps, t = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3), torch.tensor([0.05, 0.5, 1.0])
    prediction = from_eps(VP, add_noise(VP, x0, eps, t), eps, t)
    assert_close(prediction.x0, x0, atol=2e-5, rtol=1e-5)  # fp32 rounding divided by alpha(1) = 0.068
    assert torch.equal(prediction.eps, eps)


def test_from_v_inverts_noising(randn):
    x0, eps, t = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3), torch.tensor([0.05, 0.5, 1.0])
    x_t, v = add_noise(VP, x0, eps, t), add_noise(VP, eps, -x0, t)  # v = alpha eps - sigma x0
    prediction = from_v(VP, x_t, v, t)
    assert_close(prediction.x0, x0, atol=1e-5, rtol=1e-5)
    assert_close(prediction.eps, eps, atol=1e-5, rtol=1e-5)


def test_to_v_is_the_velocity_of_diffusers_and_the_inverse_of_from_v(randn):
    x0, eps, t = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3), torch.tensor([0.05, 0.5, 1.0])
    v = to_v(VP, Prediction(x0, eps), t)
    assert_close(v, ddim().get_velocity(x0, eps, torch.tensor([49, 499, 999])), atol=1e-6, rtol=1e-6)
    assert_close(to_v(VP, from_v(VP, randn(2, 3, 2, 3, 3), v, t), t), v, atol=1e-6, rtol=1e-5)


def test_predictions_are_formed_in_fp32(randn):
    # In bf16 x_t - t velocity would round to 8 bits; from bf16 inputs it must be exact to fp32.
    x_t, velocity = randn(0, 2, 1, 3, 3).bfloat16(), randn(1, 2, 1, 3, 3).bfloat16()
    t = torch.full((2,), 0.3)
    expected = x_t.double() - t[0].double() * velocity.double()
    prediction = from_velocity(x_t, velocity, t)
    assert_close(prediction.x0.double(), expected, atol=1e-6, rtol=0)
    outputs = [prediction.eps, from_eps(VP, x_t, velocity, t).x0, from_v(VP, x_t, velocity, t).eps]
    assert all(output.dtype == torch.float32 for output in outputs)


def test_flow_step_is_the_euler_step_of_diffusers(randn):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    ours = theirs = randn(0, 2, 3, 4, 4)
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = randn(i + 1, 2, 3, 4, 4)
        t, s = scheduler.sigmas[i].expand(2), scheduler.sigmas[i + 1].expand(2)
        ours = step(FLOW, from_velocity(ours, velocity, t), s)
        theirs = scheduler.step(velocity, timestep, theirs).prev_sample
        assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("prediction_type", "convert"), [("epsilon", from_eps), ("v_prediction", from_v)])
def test_vp_step_is_the_ddim_step_of_diffusers(prediction_type, convert, randn):
    scheduler = ddim(prediction_type, set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    times = [(timestep + 1) / 1000 for timestep in scheduler.timesteps.tolist()] + [0.0]
    ours = theirs = randn(0, 2, 3, 4, 4)
    for i, timestep in enumerate(scheduler.timesteps):
        output = randn(i + 1, 2, 3, 4, 4)
        prediction = convert(VP, ours, output, torch.full((2,), times[i]))
        ours = step(VP, prediction, torch.full((2,), times[i + 1]))
        theirs = scheduler.step(output, timestep, theirs, eta=0.0).prev_sample
        # x0 at the first step is a difference of rounded numbers over alpha = 0.068, of size 15.
        assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


def test_the_last_vp_step_leaves_no_noise_unlike_ddim_without_alpha_to_one(randn):
    scheduler = ddim(set_alpha_to_one=False)
    scheduler.set_timesteps(4)
    x_t, eps = randn(0, 1, 1, 4, 4), randn(1, 1, 1, 4, 4)
    prediction = from_eps(VP, x_t, eps, torch.tensor([0.25]))
    stock = scheduler.step(eps, scheduler.timesteps[-1], x_t, eta=0.0).prev_sample
    assert torch.equal(step(VP, prediction, torch.zeros(1)), prediction.x0)
    assert_close(stock, step(VP, prediction, torch.tensor([0.001])), atol=1e-5, rtol=1e-5)


def test_flow_secant_is_the_mean_velocity_of_the_segment(randn):
    z_0, z_k = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3)
    t_0, t_k = torch.tensor([1.0, 1.0, 0.9]), torch.tensor([0.9, 0.5, 0.1])
    v_star = (z_0 - z_k) / (t_0 - t_k)[:, None, None, None]
    assert_close(secant(FLOW, z_0, t_0, z_k, t_k).velocity, v_star, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_one_step_with_the_secant_leads_from_one_end_to_the_other(path, randn):
    z_0, z_k = randn(0, 3, 2, 3, 3), randn(1, 3, 2, 3, 3)
    t_0, t_k = torch.tensor([1.0, 0.95, 0.9]), torch.tensor([0.8, 0.5, 0.1])
    line = secant(path, z_0, t_0, z_k, t_k)
    # The secant of a short segment is a difference quotient, of size about 10 here: fp32 leaves 1e-5.
    assert_close(add_noise(path, line.x0, line.eps, t_0), z_0, atol=1e-5, rtol=0)
    assert_close(step(path, line, t_k), z_k, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_the_secant_of_a_straight_segment_is_what_noised_it(path, randn):
    x0, eps = randn(0, 2, 2, 3, 3), randn(1, 2, 2, 3, 3)
    t_0, t_k = torch.tensor([1.0, 0.9]), torch.tensor([0.7, 0.2])
    line = secant(path, add_noise(path, x0, eps, t_0), t_0, add_noise(path, x0, eps, t_k), t_k)
    assert_close(line.x0, x0, atol=1e-5, rtol=1e-5)
    assert_close(line.eps, eps, atol=1e-5, rtol=1e-5)
