"""Size-dependent grids of FLUX.1, Qwen-Image and Z-Image, judged by the stock pipelines' own function."""

import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dpdmd.models.flow_scheduler import size_shift, stock_grid, uniform_grid

DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}  # FLUX.1-dev
STATIC = {"use_dynamic_shifting": False, "shift": 1.7}
QWEN = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
SHAPES = [(16, 128, 128), (16, 64, 96)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shift_is_the_stock_pipelines(shape):
    tokens = shape[1] * shape[2] // 4
    assert size_shift(DYNAMIC, shape) == pytest.approx(calculate_shift(tokens), abs=1e-12)
    expected = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    assert size_shift(QWEN, shape) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", [DYNAMIC, DYNAMIC | {"time_shift_type": "linear"}, STATIC])
def test_without_a_stretched_end_the_stock_grid_is_the_uniform_one(config, shape):
    stock, uniform = (grid(config, 4, shape) for grid in (stock_grid, uniform_grid))
    assert uniform.times == pytest.approx(stock.times, abs=1e-6)


def test_grids_depend_on_the_size_only_if_the_scheduler_requires_it():
    for grid in (stock_grid, uniform_grid):
        large, small = (grid(DYNAMIC, 4, shape).times for shape in SHAPES)
        assert large[1] > small[1] + 0.01
        assert grid(STATIC, 4, SHAPES[0]) == grid(STATIC, 4, SHAPES[1])


def test_only_the_stock_grid_is_stretched_to_the_terminal_value():
    assert stock_grid(QWEN, 4, SHAPES[0]).times[-2] == pytest.approx(0.02, abs=1e-6)
    unstretched = stock_grid(QWEN | {"shift_terminal": None}, 4, SHAPES[0])
    assert uniform_grid(QWEN, 4, SHAPES[0]).times == pytest.approx(unstretched.times, abs=1e-6)
