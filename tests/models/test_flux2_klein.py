"""What is special about FLUX.2-klein: a shift by the number of steps, and pipelines that are marked as distilled."""

import pytest
import tiny_flux2_klein

from dpdmd.models.load import load_adapter, planning_adapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe


def test_the_grid_of_every_size_and_number_of_steps_is_the_stock_pipelines(tiny_folder):
    folder = tiny_folder("flux2_klein")
    adapter, pipeline = load_adapter(folder), tiny_flux2_klein.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    shifts = set()
    for height, width, num_steps in ((16, 24, 2), (16, 24, 3), (96, 96, 3)):
        size = {"height": height, "width": width, "num_inference_steps": num_steps, "guidance_scale": 1.0}
        pipeline(prompt="one cross", **size, output_type="latent")
        shape = adapter.latent_shape(height, width)
        grid = adapter.stock_grid(num_steps, shape).times
        assert grid == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
        assert grid == pytest.approx(adapter.uniform_grid(num_steps, shape).times, abs=1e-6)
        shifts.add(round(adapter.own_shift(num_steps, shape), 3))
    assert len(shifts) == 3


def test_the_shift_jumps_at_4300_tokens_up_to_which_it_knows_the_number_of_steps(tiny_folder):
    adapter = load_adapter(tiny_folder("flux2_klein"))
    small, large = (16, 64, 64), (16, 54, 80)
    assert adapter.dynamic_shift(4, small) == pytest.approx(2.29, abs=5e-3)
    assert adapter.dynamic_shift(50, small) == pytest.approx(2.02, abs=5e-3)
    assert adapter.dynamic_shift(4, large) == adapter.dynamic_shift(50, large) == pytest.approx(1.19, abs=5e-3)


def test_the_shipped_recipe_sets_the_students_shift_and_leaves_the_teachers_alone():
    recipe = load_recipe("flux2_klein_dp_dmd")
    plan = resolve(recipe, planning_adapter(recipe.model.teacher))
    assert plan.student.grid.times == pytest.approx((1, 0.9, 0.75, 0.5, 0), abs=1e-6)
    assert plan.teacher.grid.times[1] == pytest.approx(0.9973, abs=1e-4)
    reached = plan.teacher.grid.times[plan.anchor_steps]
    assert reached == pytest.approx(0.9, abs=0.01)


def test_the_stock_call_takes_no_negative_prompt(tiny_folder):
    assert not load_adapter(tiny_folder("flux2_klein")).takes_negative_prompt


def test_a_distilled_teacher_is_not_guided_and_its_base_is(tiny_folder):
    base = load_adapter(tiny_folder("flux2_klein"))
    distilled = load_adapter(tiny_folder("flux2_klein", is_distilled=True))
    assert (base.guidance_scale, base.num_inference_steps) == (4.0, 50)
    assert (distilled.guidance_scale, distilled.num_inference_steps) == (1.0, 4)
