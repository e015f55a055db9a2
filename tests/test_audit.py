"""A student that was trained elsewhere, judged by the same report."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from dpdmd.audit import audit
from dpdmd.evaluate.generate import sample_latents
from dpdmd.evaluate.stock import generate_with_stock, load_pipeline
from dpdmd.models.load import built_in_teacher, load_adapter, load_sampler
from dpdmd.models.lora import merge_lora, save_lora
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.files import read_json
from dpdmd.store.png import to_uint8

PROMPTS = ["a red circle", "one cross"]
SCALE, STEPS = 2.0, 2


def _pixels(folder):
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))])


def _our_pixels(sampler, seeds):
    """Guided images of the first prompt, as stock diffusers should draw them."""
    cond, uncond = sampler.adapter.encode(PROMPTS[:1]), sampler.adapter.encode([""])
    grid = sampler.adapter.stock_grid(STEPS)
    latents = sample_latents(
        sampler, cond.expand(len(seeds)), uncond.expand(len(seeds)), seeds, sampler.latent_shape(), grid=grid,
        guidance_scale=SCALE,
    )  # fmt: skip
    return to_uint8(sampler.adapter.decode(latents)).numpy().astype(int)


def test_a_stock_pipeline_draws_what_we_draw_and_goes_on(tmp_path):
    folder = str(built_in_teacher())
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "progress": False}
    generate_with_stock(folder, PROMPTS[:1], out=tmp_path, seeds=[3], **options)
    manifest = generate_with_stock(folder, PROMPTS[:1], out=tmp_path, seeds=[3, 4], batch_size=2, **options)
    assert np.abs(_pixels(tmp_path) - _our_pixels(load_sampler("scenes"), [3, 4])).max() <= 1
    assert (manifest.info["pipeline"], manifest.info["guidance_scale"]) == ("StableDiffusion3Pipeline", SCALE)
    with pytest.raises(ValueError, match="made with num_inference_steps 2, not 3"):
        generate_with_stock(
            folder, PROMPTS[:1], out=tmp_path, seeds=[3], num_inference_steps=3, guidance_scale=SCALE, progress=False
        )


@pytest.fixture
def lora(tmp_path):
    """A folder of a random LoRA for the built-in teacher."""
    adapter = load_adapter("scenes")
    network = adapter.load_network()
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["to_q", "to_v"])
    network.add_adapter(config)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    save_lora(adapter, get_peft_model_state_dict(network), config, tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_lora_is_drawn_merged_into_its_teacher(form, lora, tmp_path):
    model = str(lora / LORA_FILE if form == "file" else lora)
    base = str(built_in_teacher())
    generate_with_stock(
        model, PROMPTS[:1], out=tmp_path / "out", seeds=[3], base=base, num_inference_steps=STEPS,
        guidance_scale=SCALE, progress=False,
    )  # fmt: skip
    plain = load_sampler("scenes")
    network = plain.adapter.load_network()
    merge_lora(plain.adapter, network, lora)
    expected = _our_pixels(replace(plain, network=network.eval()), [3])
    assert np.abs(_pixels(tmp_path / "out") - expected).max() <= 1
    assert np.abs(_our_pixels(plain, [3]) - expected).max() > 10
    with pytest.raises(ValueError, match="a LoRA needs the pipeline that it was made for"):
        load_pipeline(model)


@pytest.mark.slow
def test_an_audit_of_the_teacher_itself_finds_all_of_its_diversity(tmp_path):
    options = {"out": tmp_path / "audit", "prompts": PROMPTS, "images_per_prompt": 3}
    report = audit(str(built_in_teacher()), "scenes", num_inference_steps=30, guidance_scale=3.5, **options)
    info = read_json(tmp_path / "audit" / "teacher" / "samples" / "manifest.json")
    assert (info["num_inference_steps"], info["guidance_scale"]) == (30, 3.5)  # or the audit compares something else
    metrics = read_json(tmp_path / "audit" / "student" / "metrics.json")
    assert metrics["diversity_share"] == pytest.approx(1, abs=0.02) and metrics["validity"] == 1
    text = report.read_text()
    assert "student" in text and "a red circle" in text
    with pytest.raises(ValueError, match="made with num_inference_steps 30, not 4"):
        audit(str(built_in_teacher()), "scenes", num_inference_steps=4, guidance_scale=3.5, **options)


def test_what_is_missing_is_reported_before_anything_is_drawn(tmp_path):
    for options, match in (
        ({"prompts": None}, "give --prompts FILE"),
        ({"quality": ["beauty"]}, "there is no quality score 'beauty'"),
        ({"features": [str(tmp_path / "nowhere")]}, f"there is no {tmp_path}/nowhere"),
    ):
        with pytest.raises(ValueError, match=match):
            audit("someone/student", "someone/teacher", out=tmp_path / "out", **{"prompts": PROMPTS} | options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pickles are not read"):
        load_pipeline(str(tmp_path / "lora.bin"), "scenes")
