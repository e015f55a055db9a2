"""Z-Image: what the contract does not ask of every family."""

import pytest
import tiny_z_image

from dpdmd.models.load import load_adapter


@pytest.fixture(scope="module")
def folder(tiny_folder) -> str:
    """A scheduler whose shift goes by the image's size."""
    return tiny_folder("z_image", dynamic_shift=True)


def test_the_grid_of_every_size_is_the_stock_pipelines(folder):
    adapter, pipeline = load_adapter(folder), tiny_z_image.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    grids = []
    for size in ((32, 48), (96, 96)):
        pipeline("one cross", *size, num_inference_steps=3, guidance_scale=0.0, output_type="latent")
        grids.append(adapter.stock_grid(3, adapter.latent_shape(*size)).times)
        assert grids[-1] == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
        assert grids[-1] == pytest.approx(adapter.uniform_grid(3, adapter.latent_shape(*size)).times, abs=1e-6)
    assert grids[0][1] != pytest.approx(grids[1][1], abs=1e-3)


def test_encoding_leaves_the_callers_list_alone(folder):
    prompts = ["a red circle", ""]
    load_adapter(folder).encode(prompts)
    assert prompts == ["a red circle", ""]


def test_the_default_size_is_the_stock_calls(folder):
    assert load_adapter(folder).latent_shape() == (4, 512, 512)  # 1024 pixels at the tiny autoencoder's factor 2
