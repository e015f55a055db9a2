"""What is special about Lumina-Image 2.0: rows of equal length, a system prompt, a shift by the number of channels."""

import pytest
import tiny_lumina2
import torch
from torch.testing import assert_close

from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import from_velocity
from dpdmd.models.load import load_adapter
from dpdmd.models.lumina2 import row_preserving_rule


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("lumina2"))


def test_a_guided_row_has_the_conditional_ones_length_and_the_direction_of_linear_guidance(randn):
    x_t, t = randn(0, 2, 3, 4, 6), torch.tensor([0.9, 0.3])
    cond, uncond = (from_velocity(x_t, randn(seed, 2, 3, 4, 6), t) for seed in (1, 2))
    guided, linear = (rule(x_t, t, cond, uncond, 4.0).velocity for rule in (row_preserving_rule, linear_rule))
    assert_close(guided.norm(dim=-1), cond.velocity.norm(dim=-1), atol=1e-5, rtol=1e-5)
    cosine = torch.cosine_similarity(guided, linear, dim=-1)
    assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert (guided.norm(dim=1) - cond.velocity.norm(dim=1)).abs().max() > 0.1  # rows, not positions


def test_without_the_normalisation_the_stock_pipeline_draws_something_else(adapter):
    pipeline = tiny_lumina2.STOCK.from_pretrained(adapter.source)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(**options):
        generator = torch.Generator().manual_seed(0)
        size = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent"}
        return pipeline("a red circle", generator=generator, guidance_scale=4.0, **size, **options).images

    assert (drawn() - drawn(cfg_normalization=False)).abs().max() > 1e-2


@pytest.mark.parametrize("dynamic_shift", [False, True])
def test_the_grid_is_the_stock_pipelines_at_every_size(dynamic_shift, tiny_folder):
    """With a dynamic shift the stock pipeline counts channels instead of tokens, so that no size changes it."""
    folder = tiny_folder("lumina2", dynamic_shift=dynamic_shift)
    adapter, pipeline = load_adapter(folder), tiny_lumina2.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for height, width in ((32, 48), (64, 64)):
        size = {"height": height, "width": width, "num_inference_steps": 3, "guidance_scale": 1.0}
        pipeline("one cross", **size, output_type="latent")
        grid = adapter.stock_grid(3, adapter.latent_shape(height, width)).times
        assert grid == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


def test_only_prompts_follow_the_system_prompt(adapter):
    lengths = [adapter.encode([prompt]).tensors["mask"].shape[1] for prompt in ("", "red", "a red circle")]
    assert lengths[0] == 1 and lengths[1] > 20 and lengths[2] == lengths[1] + 2


def test_a_discriminator_sees_each_samples_own_picture(adapter, randn):
    cond, x_t = adapter.encode(["", "a red circle"]), randn(0, 2, *adapter.latent_shape(32, 48))
    starts = cond.tensors["mask"].sum(dim=1).tolist()
    tokens = torch.arange(starts[1] + 6).repeat(2, 1)[..., None]
    picture = adapter.picture_tokens(tokens, x_t, cond)
    assert picture[..., 0].tolist() == [list(range(start, start + 6)) for start in starts]


def test_an_autoencoder_of_another_factor_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="8 pixels per latent pixel, got 4"):
        load_adapter(tiny_folder("lumina2", channels=(8, 8, 8)))
