"""The shipped teachers: stock diffusers draws the same pictures, and they are good."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from PIL import Image

from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.models.load import BUILT_IN, built_in_teacher, load_adapter, load_sampler
from dpdmd.store.files import read_json
from dpdmd.world.find import world_of_teacher
from tools.pretrain.card import NUM_INFERENCE_STEPS, RECOMMENDED_GUIDANCE_SCALE

# The stock pipelines, and their default numbers of steps and guidance.
STOCK = {
    "scenes": (StableDiffusion3Pipeline, 28, 7.0),
    "scenes_eps": (StableDiffusionXLPipeline, 50, 5.0),
    "drawings": (StableDiffusion3Pipeline, 28, 7.0),
}
MAX_BYTES = {"scenes": 8_000_000, "scenes_eps": 10_000_000, "drawings": 12_000_000}


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_small(name):
    files = [path for path in built_in_teacher(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES[name]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


@pytest.mark.parametrize("name", BUILT_IN)
def test_stock_diffusers_with_default_arguments_draws_the_same_picture(name, tmp_path):
    prompt = "a cactus" if name == "drawings" else "a small blue cross on a white background"
    pipeline_class, steps, guidance = STOCK[name]
    pipeline = pipeline_class.from_pretrained(built_in_teacher(name))
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(prompt, generator=torch.Generator().manual_seed(3)).images[0]
    generate_folder(
        name, [prompt], out=tmp_path, seeds=[3], num_inference_steps=steps, guidance_scale=guidance, progress=False
    )
    ours = np.asarray(Image.open(tmp_path / "0000-000003.png")).astype(int)
    assert np.abs(ours - np.asarray(stock).astype(int)).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_as_good_as_its_card_states(name, tmp_path):
    """Four of the card's 32 or 64 seeds per prompt: named to 2 %, validity to the card's interval and 2 %."""
    generate_folder(
        name,
        world_of_teacher(name).evaluation_prompts(),
        out=tmp_path,
        seeds=list(range(4)),
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=RECOMMENDED_GUIDANCE_SCALE,
        progress=False,
    )
    metrics = evaluate_folder(tmp_path)
    card = read_json(built_in_teacher(name) / "scores.json")[str(RECOMMENDED_GUIDANCE_SCALE)]
    assert metrics["named_accuracy"] == pytest.approx(card["named_accuracy"], abs=0.02)
    assert metrics["named_accuracy"] >= 0.97
    low, high = card["intervals"]["validity"]
    assert low - 0.02 <= metrics["validity"] <= high + 0.02


def test_weights_stored_in_fp16_draw_in_fp32_without_a_gpu(monkeypatch):
    """And as they are stored with one; what a CPU draws is then as fast and exact as from weights in fp32."""
    assert load_adapter("scenes_eps").stored_dtype == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert next(load_sampler("scenes_eps").network.parameters()).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert next(load_sampler("scenes_eps").network.parameters()).dtype == torch.float16
