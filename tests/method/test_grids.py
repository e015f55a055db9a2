import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from dpdmd.method.grids import Grid, anchor_steps, coarsen, sample_times, uniform_grid


def stock_grid(num_steps: int) -> Grid:
    """What diffusers' flow scheduler takes by default for SD3's shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    return Grid(tuple(scheduler.sigmas.tolist()))


def test_four_shifted_steps_have_the_known_values():
    assert uniform_grid(4, shift=3).times == pytest.approx((1, 0.9, 0.75, 0.5, 0), abs=1e-12)


def test_shift_one_is_uniform():
    assert uniform_grid(5, shift=1).times == pytest.approx((1, 0.8, 0.6, 0.4, 0.2, 0), abs=1e-12)


def test_uniform_grid_is_what_diffusers_makes_of_unshifted_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    assert uniform_grid(4, shift=3).times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_stock_grid_of_diffusers_wastes_its_last_call():
    # The numbers that our documentation and the lint's threshold rest on.
    assert stock_grid(4).times == pytest.approx((1, 0.8577, 0.6022, 0.0089, 0), abs=5e-5)
    assert stock_grid(2).times == pytest.approx((1, 0.0089, 0), abs=5e-5)
    teacher = stock_grid(30).times
    reached = {1: 0.9883, 3: 0.9631, 5: 0.9353, 10: 0.8513, 15: 0.738, 20: 0.577, 29: 0.0089}
    assert {k: teacher[k] for k in reached} == pytest.approx(reached, abs=5e-4)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((1.0,), "at least one step"),
        ((1.0, 0.5), "ends at 0"),
        ((1.2, 0.5, 0.0), "starts at t <= 1"),
        ((1.0, 0.5, 0.5, 0.0), "descend strictly"),
        ((0.5, 1.0, 0.0), "descend strictly"),
        ((1.0, -0.1, 0.0), "descend strictly"),
    ],
)
def test_impossible_grids_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        Grid(times)


def test_a_grid_needs_a_step():
    with pytest.raises(ValueError, match="num_steps must be >= 1, got 0"):
        uniform_grid(0, shift=3)


def test_time_is_one_value_per_sample():
    grid = Grid((1.0, 0.25, 0.0))
    assert torch.equal(grid.time(1, torch.zeros(3, 2, 5, 5)), torch.full((3,), 0.25))


@pytest.mark.parametrize(
    ("teacher", "target", "num_steps"),
    [
        (stock_grid(30), 0.8577, 10),  # where the stock student's step 1 lands
        (uniform_grid(30, shift=3), 0.9, 7),  # .9079, nearer than .8919 after 8
        (uniform_grid(8, shift=3), 0.9, 2),
        (Grid((1.0, 0.75, 0.25, 0.0)), 0.5, 2),  # a tie goes to the less noisy end
        (Grid((1.0, 0.5, 0.0)), 0.99, 1),  # never 0 steps
        (Grid((1.0, 0.6, 0.5, 0.0)), 0.01, 2),  # never all of them
    ],
)
def test_anchor_steps_lead_closest_to_the_target(teacher, target, num_steps):
    assert anchor_steps(teacher, target) == num_steps


def test_an_anchor_needs_two_teacher_steps():
    with pytest.raises(ValueError, match="at least 2 steps"):
        anchor_steps(Grid((1.0, 0.0)), 0.5)


def test_times_hit_every_slice_once_in_random_order():
    rng = torch.Generator().manual_seed(0)
    draws = [sample_times(8, rng, low=0.2, high=0.8) for _ in range(50)]
    slices = torch.stack([((tau - 0.2) / 0.6 * 8).floor() for tau in draws])
    assert torch.equal(slices.sort(dim=1).values, torch.arange(8.0).expand(50, 8))
    # Each sample of the batch meets every noise level: its mean slice over 50 draws is 3.5 +- 4 standard errors.
    assert (slices.mean(dim=0) - 3.5).abs().max() < 4 * 2.29 / 50**0.5
    # The place inside a slice is drawn for each sample: sqrt(1/12) = .29 within every batch, not one offset for all.
    places = (torch.stack(draws) - 0.2) / 0.6 * 8 % 1
    assert abs(places.std(dim=1).mean() - 0.29) < 0.05


def test_one_time_fills_the_whole_range():
    rng = torch.Generator().manual_seed(0)
    tau = torch.cat([sample_times(1, rng, low=0.02, high=0.98) for _ in range(500)])
    assert tau.min() < 0.05 and tau.max() > 0.95 and abs(tau.mean() - 0.5) < 0.05


def test_shift_moves_times_toward_noise_inside_the_range():
    def draw(**settings):
        return sample_times(16, torch.Generator().manual_seed(1), **settings).double()

    u = draw(low=0.0, high=1.0)
    assert_close(draw(low=0.1, high=0.9, shift=3.0), 0.1 + 0.8 * 3 * u / (1 + 2 * u), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        sample_times(2, torch.Generator(), low=low, high=high)


def test_coarsened_grids_keep_start_stop_and_the_rest():
    fine = uniform_grid(30, shift=3)
    coarse, stop = coarsen(fine, 7, 3)
    assert stop == 3 and coarse.times[3] == fine.times[7]
    assert coarse.times[0] == 1 and coarse.times[4:] == fine.times[8:]
    assert coarsen(fine, 2, 5) == (fine, 2)
