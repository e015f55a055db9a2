import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from rollouts import teacher_rollout
from torch.testing import assert_close

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath, VPPath
from dpdmd.method.rollout import anchored_rollout, backward_simulation, renoise_by, rollout
from dpdmd.models.sampling import student_rollout
from dpdmd.training.updates import last_steps

FLOW, OFF = FlowPath(), Guidance(1.0)
GRID = Grid((1.0, 0.9, 0.75, 0.5, 0.0))
STD = 0.4


def gaussian_flow(mean, noise, t):
    """The probability flow ODE of N(mean, STD^2) keeps the standardised value.

    x_t = (1 - t) mean + sqrt((1 - t)^2 STD^2 + t^2) z
    """
    return (1 - t) * mean[:, None, None, None] + ((1 - t) ** 2 * STD**2 + t**2) ** 0.5 * noise


def test_teacher_rollout_solves_the_gaussian_flow(exact_gaussian, prompts, randn):
    noise, mean = randn(0, 3, 1, 4, 4), torch.tensor([-1.0, 0.5, 2.0])

    def error(num_steps):
        grid = uniform_grid(num_steps, shift=1)
        args = (exact_gaussian(FLOW, STD), FLOW, noise, prompts(mean), prompts(torch.zeros(3)))
        x0 = teacher_rollout(*args, grid=grid, guidance=OFF)
        half = teacher_rollout(*args, grid=grid, guidance=OFF, stop_after=num_steps // 2)
        return [(got - gaussian_flow(mean, noise, t)).abs().max().item() for got, t in ((x0, 0.0), (half, 0.5))]

    coarse, fine = error(100), error(200)
    assert max(fine) < 0.02
    # Euler is of first order: half the step, half the error. An error that stays would not be the step's.
    assert fine == pytest.approx([e / 2 for e in coarse], rel=0.1)


def test_guided_rollout_leads_to_the_extrapolated_mean(exact_gaussian, prompts, randn):
    # Two Gaussians of equal width: guidance moves the mean to u + s (c - u) and leaves the width.
    noise, c, u = randn(0, 2, 1, 4, 4), torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
    x0 = teacher_rollout(
        exact_gaussian(FLOW, STD),
        FLOW,
        noise,
        prompts(c),
        prompts(u),
        grid=uniform_grid(200, shift=1),
        guidance=Guidance(3.0),
    )
    assert_close(x0, gaussian_flow(u + 3 * (c - u), noise, 0.0), atol=0.02, rtol=0)  # 200 Euler steps


def test_flow_rollouts_are_the_sampling_loop_of_diffusers(stepwise_network, prompts, randn):
    network, noise, cond = stepwise_network(GRID.times), randn(0, 2, 2, 4, 4), prompts([0.3, -0.7])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    x = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, (timestep / 1000).expand(2), cond).velocity, timestep, x).prev_sample
        assert_close(student_rollout(network, FLOW, noise, cond, grid=GRID).x0, x, atol=1e-5, rtol=1e-5)
    teacher = teacher_rollout(network, FLOW, noise, cond, prompts([0.0, 0.0]), grid=GRID, guidance=OFF)
    assert_close(teacher, x, atol=1e-5, rtol=1e-5)


def test_vp_rollouts_are_the_ddim_loop_of_diffusers(exact_gaussian, prompts, randn):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(5)
    path = VPPath(scheduler.alphas_cumprod)
    denoise, noise, cond = exact_gaussian(path, STD), randn(0, 2, 2, 4, 4), prompts([0.3, -0.7])
    x = noise
    for timestep in scheduler.timesteps:
        eps = denoise(x, ((timestep + 1) / 1000).expand(2), cond).eps
        x = scheduler.step(eps, timestep, x, eta=0.0).prev_sample
    grid = Grid((1.0, 0.8, 0.6, 0.4, 0.2, 0.0))
    # The stock loop recovers x0 = (x_t - sigma eps) / alpha with alpha(1) = 0.006: fp32 leaves 1e-5 of it.
    assert_close(student_rollout(denoise, path, noise, cond, grid=grid).x0, x, atol=1e-4, rtol=1e-4)


def test_teacher_rollout_stops_after_the_requested_step(stepwise_network, recorder, prompts, randn):
    spy = recorder(stepwise_network(GRID.times))
    z_k = teacher_rollout(
        spy, FLOW, randn(0, 2, 1, 3, 3), prompts([1.0, 2.0]), prompts([0.0, 0.0]), grid=GRID, guidance=OFF, stop_after=2
    )
    assert [t.tolist() for _, t, _ in spy.calls] == [[1.0, 1.0], pytest.approx([0.9, 0.9])]
    x_t, t, cond = spy.calls[1]
    velocity = spy.denoise(x_t, t, cond).velocity
    assert_close(z_k, (x_t + (0.75 - 0.9) * velocity).detach(), atol=1e-5, rtol=1e-5)
    assert not z_k.requires_grad and not any(spy.grad_enabled)


@pytest.mark.parametrize("stop_after", [0, -1, 5])
def test_impossible_stops_are_refused(stop_after, stepwise_network, prompts, randn):
    with pytest.raises(ValueError, match=f"stop_after must be between 1 and 4, got {stop_after}"):
        teacher_rollout(
            stepwise_network(GRID.times),
            FLOW,
            randn(0, 1, 1, 2, 2),
            prompts([1.0]),
            prompts([0.0]),
            grid=GRID,
            guidance=OFF,
            stop_after=stop_after,
        )


@pytest.mark.parametrize("detach_first", [False, True])
def test_a_loss_on_the_samples_reaches_the_steps_after_the_cut(detach_first, stepwise_network, prompts, randn):
    network = stepwise_network(GRID.times)
    args = network, FLOW, randn(0, 2, 1, 3, 3), prompts([1.0, 2.0])
    student_rollout(*args, grid=GRID, detach_first=detach_first).x0.square().mean().backward()
    assert network.steps_with_gradient() == [not detach_first, True, True, True]


@pytest.mark.parametrize("num_first", [None, 2, 1])
def test_a_loss_on_the_first_prediction_reaches_step_one_alone(num_first, stepwise_network, prompts, randn):
    network = stepwise_network(GRID.times)
    noise, cond = randn(0, 2, 1, 3, 3), prompts([1.0, 2.0])
    first = student_rollout(network, FLOW, noise, cond, grid=GRID, detach_first=True, num_first=num_first).first
    assert torch.equal(first.velocity, network(noise, torch.ones(2), cond).velocity[:num_first])
    first.velocity.square().mean().backward()
    assert network.steps_with_gradient() == [True, False, False, False]


@pytest.mark.parametrize("num_first", [2, 1, 0])
def test_how_many_first_predictions_are_kept_changes_no_sample(num_first, stepwise_network, prompts, randn):
    network = stepwise_network(GRID.times)
    args = network, FLOW, randn(0, 2, 1, 3, 3), prompts([1.0, 2.0])
    whole, few = (
        student_rollout(*args, grid=GRID, detach_first=True, num_first=number) for number in (None, num_first)
    )
    assert torch.equal(whole.x0, few.x0) and (few.first is None) == (num_first == 0)
    few.x0.square().mean().backward()
    assert network.steps_with_gradient() == [False, True, True, True]


def test_the_cut_changes_gradients_and_no_value(stepwise_network, prompts, randn):
    args = stepwise_network(GRID.times), FLOW, randn(0, 2, 1, 3, 3), prompts([1.0, 2.0])
    whole, cut = (student_rollout(*args, grid=GRID, detach_first=detach_first).x0 for detach_first in (False, True))
    assert torch.equal(whole, cut)


def test_the_anchored_rollout_is_its_algorithm(stepwise_network, prompts, randn):
    """first = G(z_0, t_0); z_1 = stop_gradient(step(first, t_1)); x0 = the rest of the steps from z_1."""
    network, z_0, cond = stepwise_network(GRID.times), randn(0, 2, 1, 3, 3), prompts([1.0, 2.0])
    seen = []

    def rest(z_1):
        seen.append(z_1)
        return rollout(network, FLOW, z_1, cond, grid=GRID, start=1)

    anchored = anchored_rollout(network, FLOW, z_0, cond, grid=GRID, rest=rest)
    first = network(z_0, torch.ones(2), cond)
    assert not seen[0].requires_grad
    assert_close(seen[0], (z_0 + (0.9 - 1) * first.velocity).detach())
    assert_close(anchored.x0, rollout(network, FLOW, seen[0], cond, grid=GRID, start=1))


def test_a_cut_that_leaves_no_step_to_train_is_refused(stepwise_network, prompts, randn):
    one = Grid((1.0, 0.0))
    args = stepwise_network(one.times), FLOW, randn(0, 1, 1, 2, 2), prompts([1.0])
    with pytest.raises(ValueError, match="at least 2 steps, one for DMD to train, got 1"):
        student_rollout(*args, grid=one, detach_first=True)


@pytest.mark.parametrize("detach_first", [False, True])
@pytest.mark.parametrize("last", [[2, 2, 2], [4, 4, 4], [3, 4, 3], [4, 2, 4]], ids=str)
def test_a_sample_is_x0_of_its_own_last_step_and_gives_gradient_to_it_alone(
    detach_first, last, stepwise_network, prompts, randn
):
    network, noise, means = stepwise_network(GRID.times), randn(0, 3, 1, 3, 3), torch.tensor([1.0, 2.0, -1.0])
    args = {"grid": GRID, "detach_first": detach_first, "last_steps": last}
    x0 = student_rollout(network, FLOW, noise, prompts(means), **args).x0
    for i, num_steps in enumerate(last):
        x, cond = noise[i : i + 1], prompts(means[i : i + 1])
        for t, s in zip(GRID.times[: num_steps - 1], GRID.times[1:], strict=False):
            x = x + (s - t) * network(x, torch.tensor([t]), cond).velocity
        expected = network(x, torch.tensor([GRID.times[num_steps - 1]]), cond).x0
        assert_close(x0[i : i + 1], expected, atol=1e-5, rtol=1e-5)
    x0.square().mean().backward()
    assert network.steps_with_gradient() == [i + 1 in last for i in range(4)]


@pytest.mark.parametrize("last", [[2], [4], [2, 2], [4, 4, 4], [2, 3, 4]], ids=str)
def test_simulated_rollouts_make_as_many_calls_whatever_the_last_steps(
    last, stepwise_network, recorder, prompts, randn
):
    spy = recorder(stepwise_network(GRID.times))
    backward_simulation(
        spy, FLOW, randn(0, len(last), 1, 3, 3), prompts([1.0] * len(last)), grid=GRID, start=1, last_steps=last
    )
    assert spy.grad_enabled == [False, False, True]
    sizes = [max(1, sum(step > i for step in last)) for i in (2, 3)]
    assert [len(x) for x, _, _ in spy.calls] == [*sizes, len(last)]


def test_renoised_samples_leave_the_batch_with_their_own_noise(stepwise_network, prompts, randn):
    network, z, means = stepwise_network(GRID.times), randn(0, 3, 1, 3, 3), torch.tensor([1.0, 2.0, -1.0])
    fresh, last = [randn(i + 1, 3, 1, 3, 3) for i in range(4)], [1, 3, 4]
    args = {"grid": GRID, "last_steps": last, "renoise": fresh.__getitem__}
    x0 = backward_simulation(network, FLOW, z, prompts(means), **args)
    for i, num_steps in enumerate(last):
        x, cond = z[i : i + 1], prompts(means[i : i + 1])
        for j in range(num_steps - 1):
            x0_hat = network(x, torch.tensor([GRID.times[j]]), cond).x0
            x = (1 - GRID.times[j + 1]) * x0_hat + GRID.times[j + 1] * fresh[j][i : i + 1]
        expected = network(x, torch.tensor([GRID.times[num_steps - 1]]), cond).x0
        assert_close(x0[i : i + 1], expected, atol=1e-5, rtol=1e-5)


def test_a_student_of_two_steps_renews_no_noise_in_step_one():
    assert renoise_by("renoise_last", Grid((1.0, 0.5, 0.0)), lambda: pytest.fail("drew noise"))(0) is None


@pytest.mark.parametrize(("kind", "renewed"), [("ode", []), ("renoise", [0, 1, 2]), ("renoise_last", [2])])
def test_the_kind_of_a_student_says_which_steps_add_fresh_noise(kind, renewed, stepwise_network, prompts, randn):
    network, z, cond = stepwise_network(GRID.times), randn(0, 2, 1, 3, 3), prompts(torch.tensor([1.0, -2.0]))
    fresh = [randn(1 + i, 2, 1, 3, 3) for i in range(len(renewed))]
    draws, args = iter(fresh), {"grid": GRID}
    x0 = rollout(network, FLOW, z, cond, renoise=renoise_by(kind, GRID, lambda: next(draws)), **args)
    assert next(draws, None) is None
    x, left = z, iter(fresh)
    for i, (t, s) in enumerate(zip(GRID.times[:-1], GRID.times[1:], strict=True)):
        prediction = network(x, torch.full((2,), t), cond)
        x = (1 - s) * prediction.x0 + s * (next(left) if i in renewed else prediction.eps)
    assert_close(x0, x, atol=1e-5, rtol=1e-5)
    simulated = backward_simulation(
        network, FLOW, z, cond, last_steps=[4, 4], renoise=renoise_by(kind, GRID, iter(fresh).__next__), **args
    )
    assert_close(simulated, x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last", [[1, 2], [2, 5]], ids=str)
def test_last_steps_before_the_cut_or_beyond_the_grid_are_refused(last, stepwise_network, prompts, randn):
    with pytest.raises(ValueError, match="last_steps must be 2 to 4"):
        backward_simulation(
            stepwise_network(GRID.times), FLOW, randn(0, 2, 1, 2, 2), prompts([1.0, 2.0]),
            grid=GRID, start=1, last_steps=last,
        )  # fmt: skip


def test_levels_become_the_steps_after_the_cut_in_equal_shares():
    levels = (torch.arange(300) + 0.5) / 300
    steps = last_steps(levels, 1, 4)
    assert [steps.count(step) for step in range(1, 5)] == [0, 100, 100, 100]
    assert last_steps(torch.tensor([0.0, 1 - 2**-24]), 0, 7) == [1, 7]


def test_second_order_steps_converge_with_the_square_of_the_step(exact_gaussian, prompts, randn):
    noise, mean = randn(0, 3, 1, 4, 4), torch.tensor([-1.0, 0.5, 2.0])
    args = (exact_gaussian(FLOW, STD), FLOW, noise, prompts(mean), prompts(torch.zeros(3)))

    def error(num_steps):
        grid = uniform_grid(num_steps, shift=1)
        x = teacher_rollout(*args, grid=grid, guidance=OFF, stop_after=num_steps // 2, second_order=True)
        return (x - gaussian_flow(mean, noise, 0.5)).abs().max().item()

    assert error(200) == pytest.approx(error(100) / 4, rel=0.15)
