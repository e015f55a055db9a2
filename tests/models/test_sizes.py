"""Configurations of networks that nobody has: refused before time and memory are spent on them."""

import shutil
import time

import pytest

from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.sizes import LARGEST, LAYERS, require_plausible
from dpdmd.store.files import read_json, write_json


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_layers": LAYERS + 1}, "num_layers = 10001, above 10000"),
        ({"text_config": {"num_hidden_layers": 10**18}}, "text_config.num_hidden_layers"),
        ({"block_out_channels": [32, 10**40]}, "block_out_channels.1 = a number of 133 bits"),
        ({"hidden_size": -LARGEST - 1}, "hidden_size = -16777217"),
    ],
)
def test_a_number_that_no_network_has_is_named(config, named):
    with pytest.raises(ValueError, match=f"^m: its unet configuration has {named}"):
        require_plausible(config, "m", "unet")


def test_public_models_are_plausible():
    """Of the longest context (Llama 4) and the largest rotary base in use."""
    require_plausible({"max_position_embeddings": 10_485_760, "rope_theta": 10**11, "eos_token_id": [1, 2]}, "m", "t")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("transformer", {"num_layers": 9999}),
        ("transformer", {"num_attention_heads": 10**6}),
        ("transformer", {"pos_embed_max_size": 10**6}),
        ("vae", {"block_out_channels": [10**6, 10**6]}),
        ("text_encoder", {"num_hidden_layers": 9999}),
        ("text_encoder", {"hidden_size": 10**7}),
        ("text_encoder_3", {"d_ff": 10**7}),
    ],
)
def test_a_network_larger_than_its_files_is_refused_in_no_time(part, changes, sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    path = tmp_path / "t" / part / "config.json"
    write_json(path, read_json(path) | changes)
    start = time.process_time()
    with pytest.raises(ValueError, match=f"{part}") as caught:
        sampler = load_sampler(str(tmp_path / "t"))
        _ = sampler.adapter.texts, sampler.adapter.vae
    assert str(tmp_path / "t") in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 20


def test_a_picture_larger_than_any_is_refused(sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    path = tmp_path / "t" / "transformer" / "config.json"
    write_json(path, read_json(path) | {"sample_size": 10**6})
    with pytest.raises(ValueError, match="transformer"):
        load_adapter(str(tmp_path / "t"))
