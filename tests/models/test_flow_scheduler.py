"""Grids that depend on the image's size, judged by the stock pipelines' own function; the schedulers of students."""

import math

import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dpdmd.method import grids
from dpdmd.method.grids import Grid
from dpdmd.models.flow_scheduler import (
    drawn_grid,
    own_shift,
    size_shift,
    stock_grid,
    student_scheduler,
    uniform_scheduler,
)

DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}  # FLUX.1-dev
STATIC = {"use_dynamic_shifting": False, "shift": 1.7}
QWEN = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
SHAPES = [(16, 128, 128), (16, 64, 96)]
SHIFTS = [0.5, 1.0, 1.7, 3.0, math.exp(1.15), 12.0]


def own_grid(config, num_steps, shape) -> Grid:
    return stock_grid(config, num_steps, "a model", pipeline_gives_sigmas=True, mu=size_shift(config, shape))


def uniform_grid(config, num_steps, shape) -> Grid:
    return grids.uniform_grid(num_steps, shift=own_shift(config, size_shift(config, shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shift_is_the_stock_pipelines(shape):
    tokens = shape[1] * shape[2] // 4
    assert size_shift(DYNAMIC, shape) == pytest.approx(calculate_shift(tokens), abs=1e-12)
    expected = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    assert size_shift(QWEN, shape) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", [DYNAMIC, DYNAMIC | {"time_shift_type": "linear"}, STATIC])
def test_without_a_stretched_end_the_stock_grid_is_the_uniform_one(config, shape):
    stock, uniform = (grid(config, 4, shape) for grid in (own_grid, uniform_grid))
    assert uniform.times == pytest.approx(stock.times, abs=1e-6)


def test_grids_depend_on_the_size_only_if_the_scheduler_requires_it():
    for grid in (own_grid, uniform_grid):
        large, small = (grid(DYNAMIC, 4, shape).times for shape in SHAPES)
        assert large[1] > small[1] + 0.01
        assert grid(STATIC, 4, SHAPES[0]) == grid(STATIC, 4, SHAPES[1])


def test_only_the_stock_grid_is_stretched_to_the_terminal_value():
    assert own_grid(QWEN, 4, SHAPES[0]).times[-2] == pytest.approx(0.02, abs=1e-6)
    unstretched = own_grid(QWEN | {"shift_terminal": None}, 4, SHAPES[0])
    assert uniform_grid(QWEN, 4, SHAPES[0]).times == pytest.approx(unstretched.times, abs=1e-6)


@pytest.mark.parametrize("pipeline_gives_sigmas", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 30])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_students_scheduler_draws_the_uniform_grid_by_itself(shift, num_steps, pipeline_gives_sigmas):
    """As in closed form, whether the pipeline gives its scheduler sigmas or leaves the spacing to it."""
    options = {"pipeline_gives_sigmas": pipeline_gives_sigmas}
    for config in (DYNAMIC, STATIC, QWEN):
        scheduler = uniform_scheduler(config, num_steps, shift, **options)
        drawn = drawn_grid(scheduler, num_steps, **options)
        assert drawn.times == pytest.approx(grids.uniform_grid(num_steps, shift=shift).times, abs=2.5e-7)
        # Its grid leads back to it, exactly where the shift is known and up to fp32 rounding where it is not.
        assert student_scheduler(config, "ode", drawn, shift, **options).config.shift == scheduler.config.shift
        found = student_scheduler(config, "renoise", drawn, 2.0, **options)
        assert drawn_grid(found, num_steps, **options).times == pytest.approx(drawn.times, abs=1e-6)


def test_a_shift_of_three_in_four_steps():
    """The values of the closed form if sigma_min were 0: shift 2, ending at 1/2."""
    config = uniform_scheduler({}, 4, 3.0, pipeline_gives_sigmas=False).config
    assert config.shift == pytest.approx(2, abs=5e-3) and config.shift_terminal == 0.5


@pytest.mark.parametrize("pipeline_gives_sigmas", [True, False])
def test_any_other_grid_is_drawn_when_the_scheduler_is_given_it(pipeline_gives_sigmas):
    grid = Grid((0.98, 0.6, 0.55, 0.0))
    scheduler = student_scheduler(QWEN, "ode", grid, 3.0, pipeline_gives_sigmas=pipeline_gives_sigmas)
    scheduler.set_timesteps(sigmas=list(grid.times[:-1]))
    assert scheduler.sigmas.tolist() == pytest.approx(grid.times, abs=1e-7)
