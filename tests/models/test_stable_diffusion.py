"""What is special about Stable Diffusion 1 and 2: schedules that end in noise, the safety checker, names of a LoRA."""

import shutil

import pytest
import tiny_sd1
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn
from torch.testing import assert_close

from dpdmd.models.base import empty_network
from dpdmd.models.load import load_adapter, planning_adapter
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


@pytest.mark.parametrize("model", ["stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"])
def test_all_modules_have_kohyas_names_and_stock_diffusers_reads_them(model):
    adapter, layers = planning_adapter(model), {}
    linear = {name: m for name, m in empty_network(adapter).named_modules() if isinstance(m, nn.Linear)}
    names = [name for name in linear if name.endswith(tuple(f".{target}" for target in adapter.lora_targets))]
    for i, name in enumerate(names):  # numbered, so that none can be mistaken
        layers[f"{name}.lora_A.weight"] = torch.full((2, linear[name].in_features), float(i))
        layers[f"{name}.lora_B.weight"] = torch.full((linear[name].out_features, 2), float(i))
    published = adapter.lora_names(layers)
    assert len(names) == 128 and len(published) == 3 * 128
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in published
    state, alphas = StableDiffusionPipeline.lora_state_dict(dict(published))
    read = convert_unet_state_dict_to_peft(state)
    for i, name in enumerate(names):
        down, up = (read[f"unet.{name}.lora_{half}.weight"] for half in "AB")
        assert down.shape == (2, linear[name].in_features) and (down == i).all() and (up == i).all()
    assert len(read) == 2 * len(names) and set(alphas.values()) == {2.0}
