"""Model folders that are unusual, damaged or not finite: the right picture, or one sentence that names the part."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from dpdmd.evaluate.generate import generate_folder, sample
from dpdmd.evaluate.stock import load_pipeline
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.store.files import read_json, write_json
from dpdmd.training.public import train


@pytest.fixture
def copy(sd3_folder, tmp_path) -> Path:
    shutil.copytree(sd3_folder, tmp_path / "t")
    return tmp_path / "t"


def with_nan(folder: Path, part: str, tensor: str) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    tensors[tensor] = tensors[tensor] * float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("part", "tensor"), [("transformer", "proj_out.bias"), ("vae", "decoder.conv_out.bias")])
def test_no_black_picture_is_written_for_numbers_that_are_none(part, tensor, copy, tmp_path):
    with_nan(copy, part, tensor)
    settings = {"seeds": [7], "num_inference_steps": 2, "progress": False}
    with pytest.raises(FloatingPointError, match="'one cross' with seed 7 has values that are not finite"):
        generate_folder(str(copy), ["one cross"], out=tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*.png"))
    with pytest.raises(FloatingPointError, match="draws images that are not finite"):
        sample(copy, ["one cross"])


def test_a_text_encoder_that_is_not_finite_is_named(copy):
    with_nan(copy, "text_encoder_2", "text_model.final_layer_norm.bias")
    with pytest.raises(FloatingPointError, match=r"its text encoders give .*prompt_embeds that are not finite for"):
        sample(copy, ["x"])


def test_a_teacher_that_is_not_finite_is_blamed_and_not_the_learning_rate(copy, tmp_path):
    with_nan(copy, "transformer", "proj_out.bias")
    overrides = [f"model.teacher={copy}", f"output.folder={tmp_path / 'run'}", "data.cache=none", "validation.every=0"]
    with pytest.raises(FloatingPointError, match=r"the teacher .* has weights that are not finite.*proj_out\.bias"):
        train("scenes_dmd", overrides=[*overrides, "train.num_updates=1", "train.batch_size=2", "train.fake_updates=1"])
    assert "teacher" in read_json(tmp_path / "run" / "failure.json")["error"]


def test_sd3_saved_without_t5_encodes_as_with_a_silent_one(sd3_folder, tmp_path):
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "t")
    assert read_json(tmp_path / "t" / "model_index.json")["text_encoder_3"] == [None, None]
    one, two = (load_adapter(str(folder)).encode(["a red circle"]) for folder in (sd3_folder, tmp_path / "t"))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert load_pipeline(str(tmp_path / "t"))[0].text_encoder_3 is None


def test_a_pair_as_sample_size_is_height_and_width(copy):
    config = read_json(copy / "transformer" / "config.json")
    write_json(copy / "transformer" / "config.json", config | {"sample_size": [4, 8]})
    assert load_adapter(str(copy)).latent_shape() == (config["in_channels"], 4, 8)


def test_a_tokenizer_without_a_maximum_takes_that_of_its_text_encoder(copy, sd3_folder):
    for number in ("", "_2", "_3"):
        path = copy / f"tokenizer{number}" / "tokenizer_config.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "model_max_length"})
    one, two = (load_adapter(str(folder)).encode(["a red circle"]) for folder in (sd3_folder, copy))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("missing", [["text_encoder"], ["text_encoder_2", "tokenizer_2"]])
def test_a_text_encoder_that_is_null_is_named_before_anything_is_loaded(missing, copy):
    """Of SD3 only the third may be."""
    index = read_json(copy / "model_index.json")
    write_json(copy / "model_index.json", index | {name: [None, None] for name in missing})
    with pytest.raises(ValueError, match=rf"has null for {' and '.join(missing)}, without which"):
        load_adapter(str(copy))


DAMAGE = {
    "model_index.json": ["[]", "null", "{", '{"_class_name": 3}', '{"_class_name": "StableDiffusion3Pipeline"}'],
    "transformer/config.json": ["[]", "{}", "{", '{"num_layers": "x"}', '{"sample_size": null}', '{"patch_size": 0}'],
    "vae/config.json": [
        "3",
        '{"block_out_channels": 3}',
        '{"block_out_channels": []}',
        '{"_class_name": "AutoencoderDC"}',
    ],
    "scheduler/scheduler_config.json": ["[]", '{"shift": "x"}', '{"shift": null}', '{"_class_name": ["a"]}'],
    "text_encoder/config.json": ["[]", "{", '{"hidden_size": 7}', '{"num_hidden_layers": 99}', '{"vocab_size": 2}'],
    "text_encoder_3/config.json": ['{"d_model": 8}', '{"num_heads": "x"}'],
    "tokenizer/tokenizer.json": ["", "[]", '{"model": 3}'],
    "tokenizer_2/tokenizer_config.json": ["[]", "{"],
    "transformer/diffusion_pytorch_model.safetensors": ["", "text", "\x08\0\0\0\0\0\0\0[]      "],
}


@pytest.mark.parametrize(("file", "content"), [(file, text) for file, texts in DAMAGE.items() for text in texts])
def test_whatever_a_library_raises_is_one_sentence_with_the_part(file, content, copy, capfd):
    path = copy / file
    if content.startswith("{") and len(content) > 2 and "_class_name" not in content and "tokenizer" not in file:
        write_json(path, read_json(path) | json.loads(content))  # one value changed
    else:
        path.write_text(content)
    with pytest.raises(ValueError) as error:
        sampler = load_sampler(str(copy))
        sampler.adapter.encode(["x"])
        _ = sampler.adapter.vae
    message = str(error.value)
    assert str(copy) in message and "\n" not in message and len(message) < 600
    assert (Path(file).parent.name or "model_index") in message or Path(file).name in message
    assert capfd.readouterr() == ("", "")


def test_a_shift_that_leaves_no_time_between_1_and_0_is_the_models(copy):
    path = copy / "scheduler" / "scheduler_config.json"
    write_json(path, read_json(path) | {"shift": 1e12})
    with pytest.raises(ValueError, match=r"its scheduler's options give no 30 steps: a grid must descend") as error:
        load_adapter(str(copy))
    assert str(copy) in str(error.value)


def test_loading_says_nothing_as_a_library_either(copy, caplog):
    with caplog.at_level(logging.WARNING):
        load_sampler(str(copy)).adapter.encode(["x"])
    assert not caplog.records
