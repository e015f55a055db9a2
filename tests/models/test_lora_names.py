"""The names under which a LoRA leaves, at full size: judged by stock converters and by the layouts of the authors."""

import json
import shutil

import diffusers_layouts
import original_layouts
import original_unets
import pytest
import torch
from diffusers import ErnieImagePipeline, Lumina2Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils as stock
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn
from torch.testing import assert_close

from dpdmd.models.base import empty_network
from dpdmd.models.load import load_adapter, published_models
from dpdmd.models.lora import published_lora
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.tensors import write_tensors

PUBLISHED = {
    "sd35": "stabilityai/stable-diffusion-3.5-medium",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux": "black-forest-labs/FLUX.1-dev",
    "qwen_image": "Qwen/Qwen-Image",
    "z_image": "Tongyi-MAI/Z-Image",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    "flux2_klein": "black-forest-labs/FLUX.2-klein-base-4B",
    "krea2": "krea/Krea-2-Raw",
    "lumina2": "Alpha-VLLM/Lumina-Image-2.0",
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "pixart_sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "longcat_image": "meituan-longcat/LongCat-Image",
    "ernie_image": "baidu/ERNIE-Image",
    "chroma": "lodestones/Chroma1-HD",
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
    """The linear layers that a LoRA of these targets, whole names or their ends, trains."""
    linear = ((name, m) for name, m in empty_network(adapter).named_modules() if isinstance(m, nn.Linear))
    return {name: module for name, module in linear if f".{name}".endswith(tuple(f".{target}" for target in targets))}


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
    adapter = full_size("sdxl", tmp_path)
    layers = modules(adapter, adapter.lora_targets if targets == "default" else ALL_LINEAR)
    published = publish(adapter, layers, tmp_path)
    assert len(layers) == (560 if targets == "default" else 743)
    assert len(published) == 3 * len(layers)

    # The authors' layout has each name, for a layer of that shape.
    linear = {key: t for key, t in original_unets.sdxl().items() if t.ndim == 2}
    table = {kohyas(key.removesuffix(".weight")): tuple(t.shape) for key, t in linear.items()}
    assert_of_these_layers(published, table)
    assert targets == "default" or len(published) == 3 * len(table)
    assert_stock_reads(StableDiffusionXLPipeline, adapter, published, layers)


@pytest.mark.parametrize("model", ["sd1", "sd2"])
def test_all_modules_of_stable_diffusion_have_kohyas_names_and_stock_diffusers_reads_them(model, tmp_path):
    """kohya's tools call the modules of this U-Net as diffusers does."""
    adapter = full_size(model, tmp_path)
    layers = modules(adapter, adapter.lora_targets)
    published = publish(adapter, layers, tmp_path)
    assert len(layers) == 128 and len(published) == 3 * 128
    table = {kohyas(key.removesuffix(".weight")): tuple(t.shape) for key, t in unet_tables()[model].items()}
    assert_of_these_layers(published, table)
    assert_stock_reads(StableDiffusionPipeline, adapter, published, layers)


def kohyas(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def assert_of_these_layers(published, table) -> None:
    down, up = numbers(published, ".lora_down.weight"), numbers(published, ".lora_up.weight")
    assert set(down) == set(up) <= set(table)
    assert all(table[name] == (up[name][1], down[name][2]) and up[name][0] == down[name][0] for name in down)
    assert {name.removesuffix(".alpha") for name in published if name.endswith(".alpha")} == set(down)
    assert all(published[f"{name}.alpha"] == RANK for name in down)


def assert_stock_reads(pipeline, adapter, published, layers) -> None:
    """Stock diffusers leads each back to its module."""
    state, alphas = pipeline.lora_state_dict(dict(published), unet_config=empty_network(adapter).config)
    read = convert_unet_state_dict_to_peft(state)
    expected = {f"unet.{name}": i for i, name in enumerate(layers)}
    assert {name: value[0] for name, value in numbers(read, ".lora_A.weight").items()} == expected
    assert {name: value[0] for name, value in numbers(read, ".lora_B.weight").items()} == expected
    assert len(read) == 2 * len(layers) and set(alphas.values()) == {RANK} and len(alphas) == len(layers)


def unet_tables() -> dict[str, dict[str, torch.Tensor]]:
    """The authors' U-Nets as stock diffusers reads them from a checkpoint."""
    tables = {"sdxl": original_unets.sdxl(), "sd1": original_unets.sd1(), "sd2": original_unets.sd2()}
    return {
        model: stock.convert_ldm_unet_checkpoint(
            {f"model.diffusion_model.{name}": t for name, t in table.items()},
            {"layers_per_block": 2, "addition_embed_type": "text_time" if model == "sdxl" else None},
        )
        for model, table in tables.items()
    }


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}


@pytest.mark.parametrize("model", ["sdxl", "sd1", "sd2"])
def test_the_table_of_a_unet_is_what_stock_diffusers_reads_from_a_checkpoint_of_its_authors(model, tmp_path):
    """The judge of the judge: no tensor of the network is missing there, none is left over."""
    assert shapes(unet_tables()[model]) == shapes(empty_network(full_size(model, tmp_path)).state_dict())


# Each table of the authors' layout in the layout of diffusers, by stock converters.
TRANSFORMERS = {
    "sd35": (243, lambda: stock.convert_sd3_transformer_checkpoint_to_diffusers(original_layouts.sd35_medium())),
    "flux": (266, lambda: stock.convert_flux_transformer_checkpoint_to_diffusers(original_layouts.flux_dev())),
    "qwen_image": (480, diffusers_layouts.qwen_image),
    "z_image": (136, lambda: stock.convert_z_image_transformer_checkpoint_to_diffusers(original_layouts.z_image())),
    "sana": (160, lambda: stock.convert_sana_transformer_to_diffusers(original_layouts.sana())),
    "flux2_klein": (
        80,
        lambda: stock.convert_flux2_transformer_checkpoint_to_diffusers(original_layouts.flux2_klein()),
    ),
    "krea2": (128, lambda: stock.convert_krea2_transformer_checkpoint_to_diffusers(original_layouts.krea2())),
    "lumina2": (120, lambda: stock.convert_lumina2_to_diffusers(original_layouts.lumina2())),
    "longcat_image": (140, diffusers_layouts.longcat_image),
    "ernie_image": (
        144,
        lambda: stock.convert_ernie_image_transformer_checkpoint_to_diffusers(diffusers_layouts.ernie_image()),
    ),
    "chroma": (266, lambda: stock.convert_chroma_transformer_checkpoint_to_diffusers(original_layouts.chroma())),
    "pixart_sigma": (224, diffusers_layouts.pixart_sigma),
}


@pytest.mark.parametrize("model", TRANSFORMERS)
def test_the_table_of_a_transformer_is_that_of_the_whole_network(model, tmp_path):
    """No weight of the network is missing in its authors' checkpoint, none is left over."""
    assert shapes(TRANSFORMERS[model][1]()) == shapes(empty_network(full_size(model, tmp_path)).state_dict())


@pytest.mark.parametrize("model", [model for model in TRANSFORMERS if model not in ("lumina2", "ernie_image")])
def test_all_modules_of_a_transformer_are_weights_of_its_authors_checkpoint(model, tmp_path):
    number, table = TRANSFORMERS[model]
    adapter = full_size(model, tmp_path)
    layers = modules(adapter, adapter.lora_targets)
    published = publish(adapter, layers, tmp_path)
    assert len(layers) == number and len(published) == 2 * number
    assert_weights_of(published, shapes(table()), "transformer.")


def assert_weights_of(published, weights, prefix: str) -> None:
    """Each module is in the table, with a weight of that shape."""
    down, up = numbers(published, ".lora_A.weight"), numbers(published, ".lora_B.weight")
    assert set(down) == set(up) and len(published) == 2 * len(down)
    for key in down:
        assert key.startswith(prefix)
        assert weights[f"{key.removeprefix(prefix)}.weight"] == (up[key][1], down[key][2])


def test_all_modules_of_ernie_image_are_named_for_comfyui_and_stock_diffusers_reads_them(tmp_path):
    adapter = full_size("ernie_image", tmp_path)
    layers = modules(adapter, adapter.lora_targets)
    published = publish(adapter, layers, tmp_path)
    assert len(layers) == 144
    assert_weights_of(published, shapes(diffusers_layouts.ernie_image()), "diffusion_model.")
    read = ErnieImagePipeline.lora_state_dict(dict(published))
    expected = {f"transformer.{name}": i for i, name in enumerate(layers)}
    for half in "AB":
        assert {name: value[0] for name, value in numbers(read, f".lora_{half}.weight").items()} == expected
    assert len(read) == 2 * len(layers)


@pytest.mark.parametrize(
    "targets", [("to_q", "to_k", "to_v", "to_out.0"), ("to_v", "feed_forward.linear_2", "norm1.linear")]
)
def test_a_lora_of_lumina_in_the_original_layout_is_read_by_stock_diffusers_as_the_same_update(targets, tmp_path):
    """The fused matrix has the three updates below each other; what no update has is read as zero."""
    adapter = full_size("lumina2", tmp_path)
    network = empty_network(adapter)
    layers = modules(adapter, targets)
    assert len(layers) == {4: 120, 3: 88}[len(targets)]
    generator = torch.Generator().manual_seed(0)
    given = {}
    for name, module in layers.items():
        given[f"{name}.lora_A.weight"] = torch.randn(RANK, module.in_features, generator=generator)
        given[f"{name}.lora_B.weight"] = torch.randn(module.out_features, RANK, generator=generator)
    published = adapter.lora_names(given)
    weights = shapes(original_layouts.lumina2())
    assert_weights_of(published, weights, "diffusion_model.")

    def update(tensors, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Some rows of lora_B @ lora_A: the whole product is large."""
        if f"{name}.lora_B.weight" not in tensors:
            return torch.zeros(1)
        return tensors[f"{name}.lora_B.weight"][rows] @ tensors[f"{name}.lora_A.weight"]

    read = Lumina2Pipeline.lora_state_dict(dict(published))
    linear = {n: m for n, m in network.named_modules() if f"transformer.{n}.lora_A.weight" in read}
    assert len(read) == 2 * len(linear) and set(layers) < set(linear)
    for name, module in linear.items():
        rows = torch.arange(0, module.out_features, 97)
        theirs, ours = update(read, f"transformer.{name}", rows), update(given, name, rows)
        assert_close(theirs, ours.expand_as(theirs))
    if len(targets) == 4:
        fused = update(published, "diffusion_model.layers.3.attention.qkv", torch.tensor([2303, 2304, 3072, 3839]))
        places = [("to_q", 2303), ("to_k", 0), ("to_v", 0), ("to_v", 767)]
        expected = [update(given, f"layers.3.attn.{name}", torch.tensor([row])) for name, row in places]
        assert_close(fused, torch.cat(expected))


def test_a_module_of_lumina_that_has_no_name_in_the_original_layout_is_refused(tmp_path):
    adapter = full_size("lumina2", tmp_path)
    layers = modules(adapter, ("norm_out.linear_2",))
    with pytest.raises(ValueError, match=r"LoRA of norm_out\.linear_2 cannot be exported: .* without --lora"):
        publish(adapter, layers, tmp_path)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"lora_alpha": 6.0}, 3.0), ({"lora_alpha": 6.0, "use_rslora": True}, 6 / RANK**0.5), ({}, 1.0)],
)
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_the_scale_is_in_the_weights_and_nowhere_else(name, settings, scale, tmp_path):
    adapter = full_size(name, tmp_path)
    layers = dict(list(modules(adapter, ("to_q",)).items())[:2])
    values = list(publish(adapter, layers, tmp_path, **settings).items())[-2 if "flux" in name else -3 :]
    down, up = values[0][1], values[-1][1]
    assert (down == 1).all() and torch.equal(up, torch.full_like(up, scale))
    assert all(value == RANK for key, value in values if key.endswith(".alpha"))


def test_a_dora_is_refused_with_the_way_out(tmp_path):
    adapter = full_size("sdxl", tmp_path)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(RANK, 1280), f"{name}.lora_B.weight": torch.ones(1280, RANK)}
    write_tensors(tmp_path / LORA_FILE, tensors | {f"{name}.lora_magnitude_vector": torch.ones(1280)})
    with pytest.raises(ValueError, match=r"is a DoRA, .* export it without --lora"):
        published_lora(adapter, tmp_path)
