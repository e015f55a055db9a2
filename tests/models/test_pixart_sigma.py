"""What is special about PixArt-Sigma: a learned variance, an older name of its class, LoRAs without a stock loader."""

import pytest
import torch
from torch.testing import assert_close

from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("pixart_sigma"))


def test_the_learned_variance_is_not_part_of_the_prediction(adapter, randn):
    network, x_t, t = adapter.load_network(), randn(0, 1, *adapter.latent_shape(16, 24)), torch.tensor([0.5])
    cond = adapter.encode(["a red circle"])
    with torch.no_grad():
        before = adapter.predict(network, x_t, t, cond)
        variance = network.proj_out.weight.view(2, 2, 8, -1)[:, :, 4:]  # patch by patch, after the 4 of eps
        variance.add_(1)
        after = adapter.predict(network, x_t, t, cond)
        network.proj_out.weight.add_(1)
        other = adapter.predict(network, x_t, t, cond)
    assert_close(after.eps, before.eps, atol=0, rtol=0)
    assert (other.eps - before.eps).abs().max() > 1e-2


def test_the_network_is_known_by_its_older_name_and_saved_under_its_own(adapter, tmp_path):
    assert read_json(f"{adapter.source}/transformer/config.json")["_class_name"] == "Transformer2DModel"
    adapter.load_network().save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["_class_name"] == "PixArtTransformer2DModel"


def test_a_network_that_is_told_the_size_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="given the image's size is not supported"):
        load_adapter(tiny_folder("pixart_sigma", sample_size=128))  # for which diffusers makes one


def test_padding_counts_nothing_in_the_stock_network(adapter, randn):
    embeds, mask, *_ = adapter.texts.encode_prompt(["a red circle"], False, clean_caption=False)
    kept = adapter.encode(["a red circle"])
    padded = type(kept)({"prompt_embeds": embeds, "mask": mask})
    assert mask.shape[1] == 300 and kept.tensors["mask"].shape[1] == int(mask.sum()) < 10
    network, x_t, t = adapter.load_network(), randn(0, 1, *adapter.latent_shape(16, 24)), torch.tensor([0.5])
    with torch.no_grad():
        ours, stock = (adapter.predict(network, x_t, t, cond) for cond in (kept, padded))
    assert_close(ours.eps, stock.eps, atol=1e-5, rtol=1e-5)
