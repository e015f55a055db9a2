"""What is special about ERNIE-Image: a call without sigmas, prompts as written, tokens after those of the image."""

import pytest
import tiny_ernie_image
import torch

from dpdmd.method.grids import Grid
from dpdmd.models.load import load_adapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("ernie_image"))


def test_a_grid_that_the_scheduler_does_not_draw_is_refused(adapter):
    grid = Grid((1.0, 0.8, 0.3, 0.0))
    scheduler = adapter.student_scheduler("ode", grid)
    with pytest.raises(ValueError, match=r"takes no sigmas, .* does not draw the student's grid 1, 0.8, 0.3, 0;"):
        adapter.call_arguments(scheduler, grid)


def test_a_grid_that_no_export_could_draw_is_refused_before_training(tiny_folder):
    """With a last time of its scheduler the stock grid is no uniform one, which the scheduler of a student draws."""
    adapter = load_adapter(tiny_folder("ernie_image", shift_terminal=0.1))
    recipe = {"model": {"teacher": adapter.source}, "data": {"prompts": "scenes"}, "output": {"folder": "unused"}}
    plan = resolve(Recipe.model_validate(recipe), adapter)
    assert plan.teacher.grid.times[-2] == pytest.approx(0.1) and plan.student.grid.times[-2] == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r'does not draw .* use student\.grid = "uniform"'):
        resolve(Recipe.model_validate(recipe | {"student": {"grid": "stock"}}), adapter)


def test_a_shift_by_size_is_refused_since_the_stock_call_gives_none(tiny_folder):
    folder = tiny_folder("ernie_image", dynamic_shift=True)
    with pytest.raises(ValueError, match="use_dynamic_shifting is not supported"):
        load_adapter(folder)
    pipeline = tiny_ernie_image.STOCK.from_pretrained(folder)
    with pytest.raises(ValueError, match="mu"):
        pipeline("one cross", height=16, width=24, num_inference_steps=1, use_pe=False)


def test_a_language_model_that_rewrites_prompts_is_not_asked(adapter, monkeypatch):
    pipeline = tiny_ernie_image.STOCK.from_pretrained(adapter.source)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline, "_enhance_prompt_with_pe", lambda *_, **__: pytest.fail("rewrote the prompt"))
    grid = adapter.uniform_grid(1)
    arguments = adapter.call_arguments(adapter.student_scheduler("ode", grid), grid)
    call = {"height": 16, "width": 24, "output_type": "latent"}
    pipeline("one cross", **call, **arguments)
    with pytest.raises(pytest.fail.Exception, match="rewrote"):
        pipeline("one cross", **call, num_inference_steps=1)
    assert adapter.texts.pe is None and adapter.texts.pe_tokenizer is None  # nor loaded


def test_a_network_with_patches_of_its_own_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="patch_size 2 is not supported"):
        load_adapter(tiny_folder("ernie_image", patch_size=2))


def test_a_discriminator_sees_the_tokens_before_the_prompts(adapter, randn):
    x_t, cond = randn(0, 2, *adapter.latent_shape(16, 24)), adapter.encode(["", "a red circle"])
    positions = x_t.shape[2:].numel()
    output = torch.arange(positions + 5)[:, None, None].expand(-1, 2, 3)
    assert adapter.picture_tokens(output, x_t, cond)[..., 0].tolist() == [list(range(positions))] * 2
