"""Weights that are not all there: every part of every family is refused by its name and that of a tensor."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from families import taking_turns
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from dpdmd.evaluate.stock import load_pipeline
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.lora import merge_lora
from dpdmd.models.lora_start import read_lora
from dpdmd.store.files import read_json, write_json
from dpdmd.vision.features import load_extractor

LORA = "pytorch_lora_weights.safetensors"


def without_one(tensors: dict[str, Tensor]) -> str:
    name = sorted(name for name in tensors if tensors[name].ndim > 1)[0]
    del tensors[name]
    return name


def one_too_long(tensors: dict[str, Tensor]) -> str:
    name = sorted(name for name in tensors if tensors[name].ndim == 1)[0]
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    return name


def one_more_layer(tensors: dict[str, Tensor]) -> str:
    name = next(name for name in sorted(tensors) if ".0." in name)
    more = name.replace(".0.", ".77.", 1)
    tensors[more] = tensors[name].clone()
    return ".77."


def all_prefixed(tensors: dict[str, Tensor]) -> str:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)
    return ""


def edited(folder: str, out: Path, part: str, damage) -> str:
    """A copy of a pipeline folder whose `part` is damaged; returns what the error must name."""
    shutil.copytree(folder, out)
    (path,) = (out / part).glob("*.safetensors")
    tensors = load_file(path)
    named = damage(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    # Libraries leave parts of some names out: "text_model.", or one of two models.
    return named.rpartition("text_model.")[2].rpartition("language_model.model.")[2]


def weighted_parts(folder: str) -> list[str]:
    """All parts but the language model by which ERNIE-Image rewrites prompts, which is never loaded."""
    return sorted(path.parent.name for path in Path(folder).glob("*/*.safetensors") if path.parent.name != "pe")


@taking_turns(
    "damage", {damage.__name__: damage for damage in (without_one, one_too_long, one_more_layer, all_prefixed)}
)
def test_every_damaged_part_is_refused_by_name(damage, folder, tmp_path):
    for part in weighted_parts(folder):
        copy = tmp_path / part
        named = edited(folder, copy, part, damage)
        adapter = load_adapter(str(copy))
        load = {"vae": lambda a: a.vae, adapter.network_name: lambda a: a.load_network()}.get(part, lambda a: a.texts)
        with pytest.raises(ValueError) as error:
            load(adapter)
        assert f"cannot read its {part} weights" in str(error.value) and named in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_3", "transformer", "vae"])
def test_a_damaged_part_is_refused_for_an_audit_as_well(part, sd3_folder, tmp_path):
    named = edited(sd3_folder, tmp_path / "t", part, without_one)
    with pytest.raises(ValueError, match=f"cannot read its {part} weights: 1 tensors are missing.*{named}"):
        load_pipeline(str(tmp_path / "t"))


def test_what_belongs_to_another_head_may_be_in_the_file(sd3_folder, tmp_path):
    """A text encoder is often saved with the rest of its model."""

    def more(tensors):
        tensors |= {"logit_scale": torch.ones(()), "vision_model.post_layernorm.bias": torch.ones(3)}
        return ""

    edited(sd3_folder, tmp_path / "t", "text_encoder", more)
    plain, extended = (load_adapter(str(f)).encode(["a red circle"]) for f in (sd3_folder, tmp_path / "t"))
    assert torch.equal(plain.tensors["prompt_embeds"], extended.tensors["prompt_embeds"])


def test_a_classifier_without_a_pooler_has_the_first_token_as_feature(tmp_path):
    """transformers would make a random pooler, another one in every call."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    network = ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    write_json(tmp_path / "preprocessor_config.json", {"do_resize": False})
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = load_extractor(tmp_path).extract(images).pooled
    assert torch.equal(found, load_extractor(tmp_path).extract(images).pooled)
    expected = network.vit(pixel_values=images).last_hidden_state[:, 0]  # mean and std of 0.5 lead back to [-1, 1]
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_feature_network_without_a_tensor_is_refused(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    write_json(tmp_path / "preprocessor_config.json", {"do_resize": False})
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    (name,) = [name for name in tensors if name.endswith("layernorm.weight")]
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, the first is layernorm\.weight"):
        load_extractor(tmp_path)


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_folder_that_has_only_a_variant_is_read(variant, sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    for path in list((tmp_path / "t").glob("*/*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    plain, other = load_sampler(sd3_folder), load_sampler(str(tmp_path / "t"))
    assert all(map(torch.equal, plain.network.state_dict().values(), other.network.state_dict().values()))
    one, two = (sampler.adapter.encode(["one cross"]).tensors["prompt_embeds"] for sampler in (plain, other))
    assert torch.equal(one, two)


def test_a_shard_that_is_missing_is_named(sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    network = load_adapter(sd3_folder).load_network()
    for path in (tmp_path / "t" / "transformer").glob("*.safetensors"):
        path.unlink()
    network.save_pretrained(tmp_path / "t" / "transformer", max_shard_size="100KB")
    load_adapter(str(tmp_path / "t")).load_network()
    shard = sorted((tmp_path / "t" / "transformer").glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=f"transformer weights.*{shard.name}"):
        load_adapter(str(tmp_path / "t")).load_network()


def lora_of(folder: str, places: list[str]) -> dict[str, Tensor]:
    """A LoRA of rank 2 for these modules, or of any size for a module that is not there."""
    network = load_adapter(folder).load_network()
    size = network.get_submodule("transformer_blocks.0.attn.to_q").in_features
    tensors = {f"transformer.{place}.lora_A.weight": torch.randn(2, size) for place in places}
    return tensors | {f"transformer.{place}.lora_B.weight": torch.randn(size, 2) for place in places}


@pytest.fixture
def merged(sd3_folder, tmp_path):
    """What the three readers of a LoRA make of it: our own, the start of a student, and the audit of any pipeline."""

    def read(tensors: dict[str, Tensor]):
        save_file(tensors, tmp_path / LORA)
        adapter, file = load_adapter(sd3_folder), str(tmp_path / LORA)
        return [
            lambda: merge_lora(adapter, adapter.load_network(), tmp_path),
            lambda: read_lora(adapter, file),
            lambda: load_pipeline(file, sd3_folder),
        ]

    return read


FITS, OTHER = "transformer_blocks.0.attn.to_q", "transformer_blocks.77.attn.to_q"


def test_a_lora_of_which_a_part_fits_is_told_with_the_numbers(merged, sd3_folder, caplog):
    for read in merged(lora_of(sd3_folder, [FITS, OTHER])):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="dpdmd"):
            read()
        assert "1 of its 2 layers fit" in caplog.text


@pytest.mark.parametrize("kind", ["other layers", "text encoder", "no prefix", "empty", "foreign"])
def test_a_lora_that_fits_nothing_is_refused(kind, merged, sd3_folder):
    tensors = lora_of(sd3_folder, [FITS])
    tensors = {
        "other layers": lora_of(sd3_folder, [OTHER]),
        "text encoder": {f"text_encoder.{name.removeprefix('transformer.')}": t for name, t in tensors.items()},
        "no prefix": {name.removeprefix("transformer."): t for name, t in tensors.items()},
        "empty": {},
        "foreign": {"a": torch.zeros(2)},
    }[kind]
    for read in merged(tensors):
        with pytest.raises(ValueError, match=LORA):
            read()


def test_half_a_layer_and_numbers_that_are_none_are_refused(merged, sd3_folder):
    """The other half would be random."""
    tensors = lora_of(sd3_folder, [FITS])
    half = {name: tensor for name, tensor in tensors.items() if "lora_A" not in name}
    nan = tensors | {f"transformer.{FITS}.lora_A.weight": torch.full((2, 128), float("nan"))}
    for given, what in ((half, "lack one of their matrices"), (nan, "are not finite")):
        for read in merged(given):
            with pytest.raises(ValueError, match=what):
                read()


def test_a_tokenizer_without_its_vocabulary_is_refused(sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    for path in (tmp_path / "t" / "tokenizer").iterdir():
        path.unlink()
    write_json(tmp_path / "t" / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
    index = read_json(tmp_path / "t" / "model_index.json")
    write_json(tmp_path / "t" / "model_index.json", index | {"tokenizer": ["transformers", "CLIPTokenizer"]})
    with pytest.raises(ValueError, match=r"its tokenizer: .*neither tokenizer\.json nor vocab\.json and merges\.txt"):
        _ = load_adapter(str(tmp_path / "t")).texts


def test_a_tokenizer_of_another_model_is_refused(sd3_folder, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer_2" / "tokenizer.json"
    content = read_json(path)
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(100)}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"its tokenizer_2 has \d+ tokens and its text encoder knows \d+"):
        _ = load_adapter(str(tmp_path / "t")).texts
