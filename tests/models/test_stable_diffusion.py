"""What is special about Stable Diffusion 1 and 2: schedules that end in noise, the safety checker."""

import shutil

import pytest
import tiny_sd1
import torch
from torch.testing import assert_close

from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json, write_json


def test_a_schedule_that_ends_without_signal_needs_v(tiny_folder, tmp_path, randn):
    """Where alpha is 0, v is -x0, and eps says nothing of x0."""
    adapter = load_adapter(tiny_folder("sd1", prediction_type="v_prediction", zero_snr=True))
    noise, v = randn(0, 1, 4, 8, 8), randn(1, 1, 4, 8, 8)
    assert_close(
        adapter.converted(noise, v, torch.ones(1)).x0, -v, atol=2e-3, rtol=0
    )  # stock DPM-Solver takes 2^-12 for 0
    tiny_sd1.save(tmp_path, zero_snr=True)
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr needs prediction_type 'v_prediction', got 'epsilon'"):
        load_adapter(str(tmp_path))


@pytest.mark.parametrize("key", ["addition_embed_type", "class_embed_type", "encoder_hid_dim_type"])
def test_a_network_with_further_inputs_is_refused(key, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("sd1"), tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    write_json(config, read_json(config) | {key: "text"})
    with pytest.raises(ValueError, match=f"a Stable Diffusion U-Net with {key} is not supported"):
        load_adapter(str(tmp_path / "model"))


def test_a_safety_checker_is_kept_and_never_loaded(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("sd1"), tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    write_json(index, read_json(index) | checker)  # of which there are no files
    adapter = load_adapter(str(tmp_path / "model"))
    expected = load_adapter(tiny_folder("sd1")).encode(["a red circle"]).tensors["prompt_embeds"]
    assert torch.equal(adapter.encode(["a red circle"]).tensors["prompt_embeds"], expected)
