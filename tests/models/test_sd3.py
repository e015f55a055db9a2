"""Stock diffusers is the judge: our rollouts must give what StableDiffusion3Pipeline gives."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dpdmd.evaluate.generate import sample_latents, sampling_grid
from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.models.load import load_sampler
from dpdmd.store.png import to_uint8

PROMPTS = ["a red circle", "the small blue cross on a white background"]
SEEDS = [3, 4]


def stock_pipeline(folder: str) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def our_latents(folder: str, guidance_scale: float, grid: Grid | None = None) -> torch.Tensor:
    sampler = load_sampler(folder)
    cond, uncond = sampler.adapter.encode(PROMPTS), sampler.adapter.encode([""])
    grid = grid or sampling_grid(sampler, 5)
    shape = sampler.latent_shape()
    return sample_latents(sampler, cond, uncond.expand(2), SEEDS, shape, grid=grid, guidance_scale=guidance_scale)


@pytest.mark.parametrize("fixture", ["sd3_folder", "sd3_folder_with_t5"])
def test_guided_rollout_equals_the_stock_pipeline(fixture, request):
    folder = request.getfixturevalue(fixture)
    stock = stock_pipeline(folder)(
        PROMPTS, num_inference_steps=5, guidance_scale=3.5, generator=generators(), output_type="latent"
    ).images
    # fp32 sums in another order: batch doubled the other way round, and 256 equal tokens folded into one.
    torch.testing.assert_close(our_latents(folder, 3.5), stock, atol=1e-4, rtol=0)


def test_uniform_grid_equals_the_stock_pipeline_given_unshifted_sigmas(sd3_folder):
    stock = stock_pipeline(sd3_folder)(
        PROMPTS, sigmas=[1, 0.75, 0.5, 0.25], guidance_scale=1.0, generator=generators(), output_type="latent"
    ).images
    ours = our_latents(sd3_folder, 1.0, uniform_grid(4, shift=3.0))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


def test_decoded_images_equal_the_stock_pipeline(sd3_folder):
    images = stock_pipeline(sd3_folder)(
        PROMPTS, num_inference_steps=5, guidance_scale=3.5, generator=generators(), output_type="np"
    ).images
    ours = load_sampler(sd3_folder).adapter.decode(our_latents(sd3_folder, 3.5))
    stock = torch.from_numpy((images * 255).round()).to(torch.int16)
    assert (to_uint8(ours).to(torch.int16) - stock).abs().max() <= 1


def test_encoding_one_by_one_equals_a_batch_of_mixed_lengths(sd3_folder):
    adapter = load_sampler(sd3_folder).adapter
    batch = adapter.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for name, tensor in adapter.encode([prompt]).tensors.items():
            torch.testing.assert_close(tensor, batch[i : i + 1].tensors[name], atol=3e-6, rtol=0)


def test_stock_grid_names_the_schedulers_sigmas(sd3_folder):
    grid = load_sampler(sd3_folder).adapter.stock_grid(4)
    assert grid.times == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=1e-4)


def test_latent_shape_refuses_sizes_that_do_not_divide(sd3_folder):
    adapter = load_sampler(sd3_folder).adapter
    assert adapter.latent_shape() == (4, 8, 8)
    assert adapter.latent_shape(64, 32) == (4, 16, 8)
    with pytest.raises(ValueError, match=r"height must be divisible by 8 .* got 36 \(of 36 x 32, .*nearest: 32 and 40"):
        adapter.latent_shape(36, 32)
