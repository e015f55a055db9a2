"""Drawing a folder: once, by any number of processes, with the same images."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_processes

from dpdmd.evaluate.drawing import SETTINGS_FILE, draw_folder
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.manifest import read_manifest
from dpdmd.models.load import built_in_teacher
from dpdmd.store.tensors import read_tensors, write_tensors

PROMPTS, SEEDS = ["a red circle", "a blue cross", "a green square"], [0, 1]
SETTINGS = {"model": "here", "identity": "1", "guidance_scale": 2.0, "grid": [1.0, 0.1 + 0.2, 0.0]}


class Drawing:
    """Draws grey images whose level encodes prompt and seed, counts them and may stop."""

    def __init__(self, stop_after=None):
        self.drawn, self.stop_after = [], stop_after

    def __call__(self, jobs):
        for prompt, seed in jobs:
            if len(self.drawn) == self.stop_after:
                raise KeyboardInterrupt
            self.drawn.append((prompt, seed))
            yield torch.full((3, 4, 4), -1 + len(prompt) / 30 + seed / 10)


def _draw(out, drawing, prompts=PROMPTS, seeds=SEEDS, **changed):
    return draw_folder(out, prompts, seeds, drawing, settings=SETTINGS | changed, what="test", progress=False)


def _pixels(folder):
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))}


def test_an_interrupted_folder_is_continued_and_has_no_manifest_until_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _draw(tmp_path / "out", Drawing(stop_after=4))
    with pytest.raises(ValueError, match="neither manifest"):
        read_manifest(tmp_path / "out")
    rest = Drawing()
    manifest = _draw(tmp_path / "out", rest)
    assert rest.drawn == [("a green square", 0), ("a green square", 1)]
    _draw(tmp_path / "whole", Drawing())
    ours, whole = _pixels(tmp_path / "out"), _pixels(tmp_path / "whole")
    assert ours.keys() == whole.keys() and all((ours[name] == whole[name]).all() for name in whole)
    assert [(e.prompt, e.seed) for e in manifest.images] == [(p, s) for p in PROMPTS for s in SEEDS]
    nothing = Drawing()
    assert _draw(tmp_path / "out", nothing).info["seconds"] == manifest.info["seconds"]
    assert nothing.drawn == []


def test_further_seeds_and_prompts_draw_what_is_new(tmp_path):
    _draw(tmp_path, Drawing(), prompts=PROMPTS[:2])
    more = Drawing()
    manifest = _draw(tmp_path, more, seeds=[0, 1, 2])
    assert sorted(more.drawn) == sorted([(p, 2) for p in PROMPTS[:2]] + [(PROMPTS[2], s) for s in (0, 1, 2)])
    assert len(manifest.images) == 9
    few = Drawing()
    assert len(_draw(tmp_path, few, prompts=PROMPTS[:1], seeds=[1]).images) == 1 and few.drawn == []


@pytest.mark.parametrize(("key", "value"), [("guidance_scale", 3.0), ("grid", [1.0, 0.0])])
def test_images_made_otherwise_are_not_mixed_in(tmp_path, key, value):
    _draw(tmp_path, Drawing(), seeds=[0])
    with pytest.raises(ValueError, match=f"has images made with {key} .* choose another folder or remove"):
        _draw(tmp_path, Drawing(), **{key: value})
    assert len(_pixels(tmp_path)) == 3
    _draw(tmp_path, Drawing(), model="moved")  # the same network at another place


def test_images_of_two_models_are_not_mixed(tmp_path):
    _draw(tmp_path, Drawing(), seeds=[0])
    with pytest.raises(ValueError, match="has images of here, and these would be of there; choose another folder"):
        _draw(tmp_path, Drawing(), identity="2", model="there")
    with pytest.raises(ValueError, match="has images of here before its files were changed; choose another folder"):
        _draw(tmp_path, Drawing(), identity="2")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_image_that_is_not_whole_is_drawn_again(tmp_path, share):
    _draw(tmp_path, Drawing())
    path, whole = tmp_path / "0001-000001.png", _pixels(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    again = Drawing()
    _draw(tmp_path, again)
    assert again.drawn == [("a blue cross", 1)]
    assert all((image == whole[name]).all() for name, image in _pixels(tmp_path).items())


def test_other_prompts_and_images_of_unknown_origin_are_refused(tmp_path):
    _draw(tmp_path, Drawing())
    with pytest.raises(ValueError, match="has images of the prompt 'a blue cross' in place of 'a cross'"):
        _draw(tmp_path, Drawing(), prompts=["a red circle", "a cross"])
    (tmp_path / SETTINGS_FILE).unlink()
    with pytest.raises(ValueError, match=r"has images but no sampling\.json"):
        _draw(tmp_path, Drawing())


def _sample(out, **options):
    settings = {"out": out, "seeds": SEEDS, "num_inference_steps": 2, "progress": False}
    return partial(generate_folder, "scenes", PROMPTS, **settings | options)


@pytest.mark.slow
def test_images_depend_neither_on_processes_nor_on_the_batch(tmp_path):
    """To one grey level at most: sums of fp32 are taken in another order."""
    _sample(tmp_path / "one", batch_size=1)()
    _sample(tmp_path / "all", batch_size=6)()
    in_processes(_sample(tmp_path / "two", batch_size=2))
    one = _pixels(tmp_path / "one")
    for name in ("all", "two"):
        other = _pixels(tmp_path / name)
        assert one.keys() == other.keys() and len(one) == 6
        assert max(np.abs(one[file] - other[file]).max() for file in one) <= 1
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0]["images"] == manifests[1]["images"]


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_images_of_another_text_encoder_or_autoencoder_are_not_mixed_in(tmp_path, part):
    shutil.copytree(built_in_teacher(), tmp_path / "model")
    draw = partial(generate_folder, prompts=PROMPTS, out=tmp_path / "out", num_inference_steps=1, progress=False)
    draw(str(tmp_path / "model"), seeds=[0])
    moved = str((tmp_path / "model").rename(tmp_path / "moved"))
    draw(moved, seeds=[0, 1])
    (weights,) = Path(moved, part).glob("*.safetensors")
    tensors = read_tensors(weights)
    write_tensors(weights, {name: 1.5 * tensor for name, tensor in tensors.items()}, {"format": "pt"})
    with pytest.raises(ValueError, match="before its files were changed"):
        draw(moved, seeds=[0, 1, 2])


def test_how_many_prompts_are_encoded_at_a_time_changes_nothing(tmp_path, monkeypatch):
    _sample(tmp_path / "at_once")()
    monkeypatch.setattr("dpdmd.evaluate.generate.CHUNK", 2)
    _sample(tmp_path / "two")()
    at_once, two = _pixels(tmp_path / "at_once"), _pixels(tmp_path / "two")
    assert len(at_once) == 6 and all(np.abs(at_once[name] - two[name]).max() <= 1 for name in at_once)
