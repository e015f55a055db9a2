"""What is special about Krea 2: guidance that counts from zero, dropped padding, and pipelines marked as distilled."""

import shutil

import pytest
import tiny_krea2
import torch
from torch.testing import assert_close

from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json, write_json

SIZES = ((16, 24), (64, 64))


@pytest.mark.parametrize("is_distilled", [False, True])
def test_the_grid_of_every_size_is_the_stock_pipelines(is_distilled, tiny_folder):
    folder = tiny_folder("krea2", is_distilled=is_distilled)
    adapter, pipeline = load_adapter(folder), tiny_krea2.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    grids = []
    for height, width in SIZES:
        size = {"height": height, "width": width, "num_inference_steps": 3, "guidance_scale": 0.0}
        pipeline("one cross", **size, output_type="latent")
        grids.append(adapter.stock_grid(3, adapter.latent_shape(height, width)).times)
        assert grids[-1] == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
    assert (grids[0] == grids[1]) == is_distilled
    assert adapter.guidance_scale == (1.0 if is_distilled else 5.5)


def test_a_prompt_is_its_tokens_without_padding_and_predicts_as_with_it(tiny_folder, randn):
    adapter = load_adapter(tiny_folder("krea2"))
    embeds, mask = adapter.texts.encode_prompt(["a red circle"])
    kept = adapter.encode(["a red circle"])
    assert kept.tensors["prompt_embeds"].shape == (1, int(mask.sum()), 3, 16) and mask.shape[1] > 500
    padded = type(kept)({"prompt_embeds": embeds, "mask": mask})
    assert not mask[0, 100:200].any() and mask[0, -1]  # the padding is in the middle
    network, x_t, t = adapter.load_network(), randn(0, 1, *adapter.latent_shape(*SIZES[0])), torch.tensor([0.7])
    with torch.no_grad():
        ours, stock = (adapter.predict(network, x_t, t, cond) for cond in (kept, padded))
    assert_close(ours.x0, stock.x0, atol=1e-5, rtol=1e-5)


def test_a_pipeline_with_other_patches_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("krea2"), tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    write_json(index, read_json(index) | {"patch_size": 4})
    with pytest.raises(ValueError, match="patch_size 4 is not supported"):
        load_adapter(str(tmp_path / "model"))
