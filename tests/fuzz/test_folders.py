"""Generated model folders: the same model in another writing, damaged ones, and other values of configurations."""

import importlib
import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import folders
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.evaluate.generate import sample_latents
from dpdmd.models.base import decoder, encoded
from dpdmd.models.load import load_sampler
from dpdmd.store.files import read_json, write_json

PROMPT, STEPS, SEED = "a red circle", 4, 3
THOROUGH = settings().max_examples > 100
FAMILIES = ["sd3", "sdxl", "sana", "z_image", "flux", "qwen_image"] if THOROUGH else ["sd3", "sdxl"]
OWN_SCHEDULER = ("sdxl", "sana")  # the tests of these families give stock pipelines the teacher's scheduler
FEWER = settings(max_examples=max(6, settings().max_examples // 3))  # each loads a whole pipeline


@dataclass(frozen=True)
class Drawn:
    network: nn.Module
    latents: Tensor
    image: Tensor


def drawn(family, folder: Path) -> Drawn:
    """What we make of a folder, at the size of its family's tests: every part of it is read."""
    sampler = replace(load_sampler(str(folder)), image_size=family.IMAGE_SIZE)
    adapter, shape = sampler.adapter, sampler.latent_shape()
    conditions = encoded(adapter, [PROMPT]), encoded(adapter, [""])
    grid = adapter.stock_grid(STEPS, shape)
    latents = sample_latents(sampler, *conditions, [SEED], shape, grid=grid, guidance_scale=family.GUIDANCE_SCALE)
    image = decoder(adapter)(latents)
    if not (latents.isfinite().all() and image.isfinite().all()):
        raise FloatingPointError(f"{folder} draws images that are not finite")  # as `dpdmd sample` does
    return Drawn(sampler.network, latents, image)


def drawn_by_stock(family, folder: Path, shape) -> Tensor:
    pipeline = family.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    family.prepare(pipeline)
    height, width = family.IMAGE_SIZE
    size = {"height": height, "width": width, "num_inference_steps": STEPS, "output_type": "latent"}
    generator = [torch.Generator().manual_seed(SEED)]
    return family.unpacked(pipeline([PROMPT], generator=generator, **size, **family.stock_arguments(1)).images, shape)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """{family: (its module, a tiny folder, what it draws)}"""
    found = {}
    for name in FAMILIES:
        family = importlib.import_module(f"tiny_{name}")
        folder = tmp_path_factory.mktemp(name)
        family.save(folder)
        found[name] = family, folder, drawn(family, folder)
    return found


def refused(family, folder: Path, named: str) -> None:
    """Loading ends in one sentence with the folder and the part."""
    with pytest.raises(ValueError) as caught:
        drawn(family, folder)
    message = str(caught.value)
    assert str(folder) in message and named in message and "\n" not in message and len(message) < 1000, message


FAMILY = st.sampled_from(FAMILIES)
RANDOM = st.integers(0, 2**32).map(random.Random)


@FEWER
@given(name=FAMILY, rng=RANDOM, shards=st.integers(0, 3), variant=st.sampled_from([None, "fp16", "ema", "bf16"]))
def test_the_same_model_in_another_writing_draws_the_same(tmp_path, originals, name, rng, shards, variant):
    family, original, expected = originals[name]
    folder = folders.copied(original, tmp_path / "m")
    for file in folders.json_files(folder):
        folders.rewrite(file, rng)
    if shards:
        folders.reshard(rng.choice(folders.weights(folder)), shards + 1, rng)
    elif variant is not None:
        folders.rename_variant(folder, variant)
    (folder / ".gitattributes").write_text("*.bin filter=lfs")
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    found = drawn(family, folder)
    assert all(map(torch.equal, expected.network.state_dict().values(), found.network.state_dict().values()))
    # Where a tensor begins in a file, and so in memory, decides which kernels add its numbers.
    assert torch.allclose(found.latents, expected.latents, atol=1e-4)
    assert torch.allclose(found.image, expected.image, atol=1e-3)


@FEWER
@given(name=FAMILY, data=st.data())
def test_a_file_of_other_content_or_none_is_named(tmp_path, originals, name, data):
    family, original, _ = originals[name]
    folder = folders.copied(original, tmp_path / "m")
    file = data.draw(st.sampled_from(folders.json_files(folder) + folders.weights(folder)), "file")
    content = file.read_bytes()
    text = content.rstrip()
    end = data.draw(st.integers(0, len(text) - 1), "end")
    damages = [text[:end], b"\0" + text, text + b"}", None]
    if file.suffix == ".json":
        damages += [b"[]", b"3", b'"x"', b"null", b"\xff\xfe" + text, b'{"a":' * 10_000 + b"1" + b"}" * 10_000]
    damaged = data.draw(st.sampled_from(damages), "damaged")
    assume(damaged is not None or file.name != "tokenizer_config.json")  # tokenizer.json has what is needed
    if damaged is None:
        file.unlink()
    else:
        folders.replace(file, damaged)
    refused(family, folder, folders.part_of(file, folder))


@FEWER
@given(name=FAMILY, rng=RANDOM, kind=st.sampled_from(["missing", "more", "other shape", "shard", "no shard"]))
def test_weights_that_do_not_fit_their_configuration_are_named(tmp_path, originals, name, rng, kind):
    family, original, _ = originals[name]
    folder = folders.copied(original, tmp_path / "m")
    file = rng.choice(folders.weights(folder))
    tensors = load_file(file)
    tensor = rng.choice([key for key in sorted(tensors) if tensors[key].ndim > 1])
    if "shard" in kind:
        shards = folders.reshard(file, 3, rng)
        (shards[0].unlink if kind == "no shard" else lambda: folders.replace(shards[0], b"\x08"))()
    else:
        if kind == "missing":
            del tensors[tensor]
        elif kind == "more":
            head, _, last = tensor.rpartition(".")
            tensors[f"{head.replace('.0.', '.77.')}.{last}x"] = torch.zeros(2)
        else:
            tensors[tensor] = torch.zeros(*tensors[tensor].shape, 2)
        file.unlink()
        save_file(tensors, file, metadata={"format": "pt"})
    refused(family, folder, folders.part_of(file, folder))


@FEWER
@given(name=FAMILY, data=st.data(), value=folders.VALUES)
def test_another_value_of_a_configuration_is_refused_by_name_or_means_what_it_does_to_stock(
    tmp_path, originals, name, data, value
):
    family, original, _ = originals[name]
    folder = folders.copied(original, tmp_path / "m")
    file = data.draw(st.sampled_from(folders.configurations(folder)), "file")
    content = read_json(file)
    place = data.draw(st.sampled_from(folders.places(content)), "place")
    folders.replace(file, json.dumps(folders.with_value(content, place, value)))
    try:
        found = drawn(family, folder)
    except (ValueError, FloatingPointError) as error:
        message = str(error)
        assert str(folder) in message and "\n" not in message and len(message) < 1000, message
        return
    if file.parent.name == "scheduler" and name in OWN_SCHEDULER:
        return
    try:
        stock = drawn_by_stock(family, folder, tuple(found.latents.shape[1:]))
    except Exception:  # noqa: BLE001  # stock pipelines read more parts and values than we need
        return
    assert torch.allclose(found.latents, stock, atol=2e-4)


@FEWER
@given(data=st.data(), command=st.sampled_from(["sample", "audit", "train", "plan", "new", "export"]))
def test_the_command_line_ends_with_code_2_for_a_damaged_model(tmp_path, originals, dpdmd, data, command):
    _, original, _ = originals["sd3"]
    folder, out = folders.copied(original, tmp_path / "m"), tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    files = folders.json_files(folder) + folders.weights(folder)
    file = data.draw(st.sampled_from([file for file in files if file.name != "tokenizer_config.json"]), "file")
    content = file.read_bytes().rstrip()
    folders.replace(file, content[: data.draw(st.integers(0, len(content) - 1), "end")])
    student(tmp_path / "run" / "student", folder)
    (prompts := tmp_path / "p.txt").write_text(PROMPT)
    few = ["--images-per-prompt", "2", "--num-inference-steps", "1", "--out", out]
    recipe = ["scenes_dmd", "--set", f"model.teacher={folder}", "--set", f"output.folder={out}"]
    arguments = {
        "sample": [folder, "--prompt", PROMPT, *few],
        "audit": [folder, "--teacher", "scenes", "--prompts", prompts, *few],
        "train": [*recipe, "--dry-run"],
        "plan": recipe,
        "new": [folder, "--out", out / "r.toml"],
        "export": [tmp_path / "run", "--out", out],
    }[command]
    code, _, err = dpdmd(command, *arguments)
    assert "Traceback" not in err and not list(out.rglob("*.png"))
    # Those that draw nothing need not read every part.
    assert code == 2 or (code == 0 and command not in ("sample", "audit"))
    assert code == 0 or (err.startswith("error: ") and str(folder) in err and len(err) < 1500), err


def student(folder: Path, base: Path) -> None:
    """A student of the base, with its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = next((base / "transformer").glob("*.safetensors"))
    shutil.copyfile(weights, folder / "student.safetensors")
    info = {"base": str(base), "grid": [1.0, 0.5, 0.0], "num_inference_steps": 4, "objective": "dmd", "updates": 1}
    write_json(folder / "student.json", info)
