"""What is special about ERNIE-Image: a call without sigmas, a variance floor of its own, prompts as written."""

import pytest
import tiny_ernie_image
import torch

from dpdmd.method.grids import Grid
from dpdmd.models.load import load_adapter


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("ernie_image"))


def test_a_grid_that_the_scheduler_does_not_draw_is_refused(adapter):
    grid = Grid((1.0, 0.8, 0.3, 0.0))
    scheduler = adapter.student_scheduler("ode", grid)
    with pytest.raises(ValueError, match=r"takes no sigmas and cannot draw the grid \(1.0, 0.8, 0.3, 0.0\)"):
        adapter.call_arguments(scheduler, grid)


def test_a_shift_by_size_is_refused_since_the_stock_call_gives_none(tiny_folder):
    folder = tiny_folder("ernie_image", dynamic_shift=True)
    with pytest.raises(ValueError, match="use_dynamic_shifting is not supported"):
        load_adapter(folder)
    with pytest.raises(ValueError, match="mu"):
        tiny_ernie_image.STOCK.from_pretrained(folder)("one cross", height=16, width=24, num_inference_steps=1)


def test_a_language_model_that_rewrites_prompts_is_not_asked(adapter, monkeypatch):
    pipeline = tiny_ernie_image.STOCK.from_pretrained(adapter.source)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.pe = pipeline.pe_tokenizer = "a language model and its tokenizer"
    monkeypatch.setattr(pipeline, "_enhance_prompt_with_pe", lambda *_, **__: pytest.fail("rewrote the prompt"))
    grid = adapter.uniform_grid(1)
    arguments = adapter.call_arguments(adapter.student_scheduler("ode", grid), grid)
    call = {"height": 16, "width": 24, "output_type": "latent"}
    pipeline("one cross", **call, **arguments)
    with pytest.raises(pytest.fail.Exception, match="rewrote"):
        pipeline("one cross", **call, num_inference_steps=1)


def test_a_discriminator_sees_the_tokens_before_the_prompts(adapter, randn):
    x_t, cond = randn(0, 2, *adapter.latent_shape(16, 24)), adapter.encode(["", "a red circle"])
    positions = x_t.shape[2:].numel()
    output = torch.arange(positions + 5)[:, None, None].expand(-1, 2, 3)
    assert adapter.picture_tokens(output, x_t, cond)[..., 0].tolist() == [list(range(positions))] * 2
