"""What is special about LongCat-Image: guidance that lengthens nothing, prompts as written, no callback."""

import pytest
import tiny_longcat_image
import torch
from torch.testing import assert_close

from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import from_velocity
from dpdmd.models.load import load_adapter
from dpdmd.models.longcat_image import never_longer_rule
from dpdmd.models.packed import pack
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("longcat_image"))


def test_guidance_shortens_a_token_to_the_conditional_length_and_lengthens_none(randn):
    x_t, t = randn(0, 2, 3, 4, 6), torch.tensor([0.9, 0.3])
    cond, uncond = (from_velocity(x_t, randn(seed, 2, 3, 4, 6), t) for seed in (1, 2))
    for scale in (0.5, 4.0):
        guided, linear = (pack(rule(x_t, t, cond, uncond, scale).velocity) for rule in (never_longer_rule, linear_rule))
        longest = pack(cond.velocity).norm(dim=-1)
        assert_close(guided.norm(dim=-1), torch.minimum(longest, linear.norm(dim=-1)), atol=1e-5, rtol=1e-5)
        assert_close(guided, linear * (guided.norm(dim=-1) / linear.norm(dim=-1))[..., None], atol=1e-5, rtol=1e-5)
    assert (longest < linear.norm(dim=-1)).any()


def test_the_stock_pipeline_rewrites_prompts_unless_it_is_told_not_to(adapter, monkeypatch):
    pipeline = tiny_longcat_image.STOCK.from_pretrained(adapter.source)
    monkeypatch.setattr(pipeline, "rewire_prompt", lambda *_: pytest.fail("rewrote the prompt"))
    pipeline.set_progress_bar_config(disable=True)
    grid = adapter.uniform_grid(1, adapter.latent_shape(16, 24))
    arguments = adapter.call_arguments(adapter.student_scheduler("ode", grid, adapter.latent_shape(16, 24)), grid)
    call = {"height": 16, "width": 24, "output_type": "latent"}
    pipeline("one cross", **call, **arguments)
    with pytest.raises(pytest.fail.Exception, match="rewrote"):
        pipeline("one cross", **call, num_inference_steps=1)


def test_a_student_that_renews_its_noise_before_the_last_step_alone_is_refused(adapter):
    recipe = {"model": {"teacher": adapter.source}, "student": {"kind": "renoise_last"}, "objective": {"name": "dmd"}}
    recipe |= {"data": {"prompts": "scenes"}, "output": {"folder": "unused"}}
    with pytest.raises(ValueError, match=r'"renoise_last": a LongCatImagePipeline .* takes no callback'):
        resolve(Recipe.model_validate(recipe), adapter)
