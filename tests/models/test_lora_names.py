"""The names under which a LoRA leaves, at full size: judged by stock converters and by the layouts of the authors."""

import json
import shutil

import original_layouts
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers as converted_flux,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
)
from diffusers.loaders.single_file_utils import (
    convert_sana_transformer_to_diffusers as converted_sana,
)
from diffusers.loaders.single_file_utils import (
    convert_sd3_transformer_checkpoint_to_diffusers as converted_sd3,
)
from diffusers.loaders.single_file_utils import (
    convert_z_image_transformer_checkpoint_to_diffusers as converted_z_image,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn

from dpdmd.models.base import empty_network
from dpdmd.models.load import load_adapter, published_models
from dpdmd.models.lora import published_lora
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.tensors import write_tensors

PUBLISHED = {
    "sd35_medium_dp_dmd": "stabilityai/stable-diffusion-3.5-medium",
    "sdxl_dp_dmd": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux_dev_dp_dmd": "black-forest-labs/FLUX.1-dev",
    "qwen_image_dp_dmd": "Qwen/Qwen-Image",
    "z_image": "Tongyi-MAI/Z-Image",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
}
RANK = 2
# A U-Net's layers outside of its attentions that kohya's tools train as well.
ALL_LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "proj", "2", "time_emb_proj", "linear_1",
              "linear_2")  # fmt: skip


def full_size(name: str, tmp_path):
    """The adapter of a public model, from its configurations alone."""
    shutil.copytree(published_models()[PUBLISHED[name]], tmp_path, dirs_exist_ok=True)
    return load_adapter(str(tmp_path))


def modules(adapter, targets) -> dict[str, nn.Linear]:
    """The linear layers that a LoRA of these targets trains."""
    linear = ((name, m) for name, m in empty_network(adapter).named_modules() if isinstance(m, nn.Linear))
    return {name: module for name, module in linear if name.endswith(tuple(f".{target}" for target in targets))}


def publish(adapter, layers, folder, **settings) -> dict[str, torch.Tensor]:
    """What `published_lora` makes of a run's file, whose tensors are numbered, so that none can be mistaken."""
    prefix, tensors = adapter.network_name, {}
    for i, (name, module) in enumerate(layers.items()):
        tensors[f"{prefix}.{name}.lora_A.weight"] = torch.full((RANK, module.in_features), float(i))
        tensors[f"{prefix}.{name}.lora_B.weight"] = torch.full((module.out_features, RANK), float(i))
    header = {f"{prefix}.{key}": value for key, value in ({"r": RANK} | settings).items()}
    write_tensors(folder / LORA_FILE, tensors, {LORA_ADAPTER_METADATA_KEY: json.dumps(header)})
    return published_lora(adapter, folder)


def numbers(tensors, ending: str) -> dict[str, tuple[float, int, int]]:
    """Module -> (its number, rows, columns) of the tensors whose names end so."""
    return {
        name.removesuffix(ending): (float(t[0, 0]), *t.shape) for name, t in tensors.items() if name.endswith(ending)
    }


@pytest.mark.parametrize("targets", ["default", "all"])
def test_all_modules_of_sdxl_have_kohyas_names_and_stock_diffusers_reads_them(targets, tmp_path):
    adapter = full_size("sdxl_dp_dmd", tmp_path)
    layers = modules(adapter, adapter.lora_targets if targets == "default" else ALL_LINEAR)
    published = publish(adapter, layers, tmp_path)
    assert len(layers) == (560 if targets == "default" else 743)
    assert len(published) == 3 * len(layers)

    # The authors' layout has each name, for a layer of that shape.
    table = {"lora_unet_" + name.replace(".", "_"): shape for name, shape in original_layouts.sdxl().items()}
    down, up = numbers(published, ".lora_down.weight"), numbers(published, ".lora_up.weight")
    assert set(down) == set(up) <= set(table)
    assert targets == "default" or set(down) == set(table)
    assert all(table[name] == (up[name][1], down[name][2]) and up[name][0] == down[name][0] for name in down)
    assert {name.removesuffix(".alpha") for name in published if name.endswith(".alpha")} == set(down)
    assert all(published[f"{name}.alpha"] == RANK for name in down)

    # Stock diffusers leads each back to its module.
    config = empty_network(adapter).config
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(published), unet_config=config)
    read = convert_unet_state_dict_to_peft(state)
    expected = {f"unet.{name}": i for i, name in enumerate(layers)}
    assert {name: value[0] for name, value in numbers(read, ".lora_A.weight").items()} == expected
    assert {name: value[0] for name, value in numbers(read, ".lora_B.weight").items()} == expected
    assert len(read) == 2 * len(layers) and set(alphas.values()) == {RANK} and len(alphas) == len(layers)


def test_the_table_of_sdxl_is_what_stock_diffusers_reads_from_a_checkpoint_of_its_authors(tmp_path):
    """The judge of the judge."""
    adapter = full_size("sdxl_dp_dmd", tmp_path)
    table = original_layouts.sdxl()
    empty = {f"model.diffusion_model.{name}.weight": torch.empty(shape, device="meta") for name, shape in table.items()}
    # The converter counts the entries, so those without a linear layer have to be there: the convolutions.
    empty |= {
        f"model.diffusion_model.input_blocks.{name}.weight": torch.empty(1, 1) for name in ("0.0", "3.0.op", "6.0.op")
    }
    empty |= {name.replace(".weight", ".bias"): tensor[:, 0] for name, tensor in empty.items()}
    converted = convert_ldm_unet_checkpoint(empty, dict(empty_network(adapter).config))
    ours = {f"{name}.weight": tuple(m.weight.shape) for name, m in modules(adapter, ALL_LINEAR).items()}
    assert {name: tuple(t.shape) for name, t in converted.items() if name in ours} == ours


@pytest.mark.parametrize(
    ("name", "number", "table"),
    [
        ("sd35_medium_dp_dmd", 243, lambda: converted_sd3(original_layouts.sd35_medium())),
        ("flux_dev_dp_dmd", 266, lambda: converted_flux(original_layouts.flux_dev())),
        ("qwen_image_dp_dmd", 480, original_layouts.qwen_image),
        ("z_image", 136, lambda: converted_z_image(original_layouts.z_image())),
        ("sana", 160, lambda: converted_sana(original_layouts.sana())),
    ],
)  # fmt: skip
def test_all_modules_of_a_transformer_are_weights_of_its_authors_checkpoint(name, number, table, tmp_path):
    adapter = full_size(name, tmp_path)
    layers = modules(adapter, adapter.lora_targets)
    published = publish(adapter, layers, tmp_path)
    down, up = numbers(published, ".lora_A.weight"), numbers(published, ".lora_B.weight")
    assert len(layers) == number and len(published) == 2 * number and set(down) == set(up)
    shapes = {key.removesuffix(".weight"): tuple(getattr(t, "shape", t)) for key, t in table().items()}
    assert {key.removeprefix("transformer.") for key in down} <= set(shapes)
    # The table is that of the whole network: no weight of it is missing there, none is left over.
    network = {name: tuple(t.shape) for name, t in empty_network(adapter).state_dict().items()}
    network = {key.removesuffix(".weight"): shape for key, shape in network.items()}
    assert shapes == network
    for key in down:
        assert shapes[key.removeprefix("transformer.")] == (up[key][1], down[key][2])


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"lora_alpha": 6.0}, 3.0), ({"lora_alpha": 6.0, "use_rslora": True}, 6 / RANK**0.5), ({}, 1.0)],
)
@pytest.mark.parametrize("name", ["sdxl_dp_dmd", "flux_dev_dp_dmd"])
def test_the_scale_is_in_the_weights_and_nowhere_else(name, settings, scale, tmp_path):
    adapter = full_size(name, tmp_path)
    layers = dict(list(modules(adapter, ("to_q",)).items())[:2])
    values = list(publish(adapter, layers, tmp_path, **settings).items())[-2 if "flux" in name else -3 :]
    down, up = values[0][1], values[-1][1]
    assert (down == 1).all() and torch.equal(up, torch.full_like(up, scale))
    assert all(value == RANK for key, value in values if key.endswith(".alpha"))


def test_a_dora_is_refused_with_the_way_out(tmp_path):
    adapter = full_size("sdxl_dp_dmd", tmp_path)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(RANK, 1280), f"{name}.lora_B.weight": torch.ones(1280, RANK)}
    write_tensors(tmp_path / LORA_FILE, tensors | {f"{name}.lora_magnitude_vector": torch.ones(1280)})
    with pytest.raises(ValueError, match=r"is a DoRA, .* export it without --lora"):
        published_lora(adapter, tmp_path)
