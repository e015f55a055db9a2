"""The shipped teacher: stock diffusers draws the same pictures, and they are good."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.files import read_json
from dpdmd.models.load import built_in_teacher
from dpdmd.world.prompts import evaluation_prompts


def test_it_is_small():
    files = [path for path in built_in_teacher().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_stock_diffusers_with_default_arguments_draws_the_same_picture(tmp_path):
    prompt = "a small blue cross on a white background"
    pipeline = StableDiffusion3Pipeline.from_pretrained(built_in_teacher())
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(prompt, generator=torch.Generator().manual_seed(3)).images[0]
    # The stock defaults are 28 steps and guidance 7.
    generate_folder(
        "scenes", [prompt], out=tmp_path, seeds=[3], num_inference_steps=28, guidance_scale=7.0, progress=False
    )
    ours = np.asarray(Image.open(tmp_path / "0000-000003.png")).astype(int)
    assert np.abs(ours - np.asarray(stock).astype(int)).max() <= 2


@pytest.mark.slow
def test_it_is_as_good_as_its_card_says(tmp_path):
    """Eight of the card's 32 seeds per prompt: named factors to 2 %, validity within the card's interval."""
    generate_folder("scenes", evaluation_prompts(), out=tmp_path, seeds=list(range(8)), progress=False)
    metrics = evaluate_folder(tmp_path)
    card = read_json(built_in_teacher() / "scores.json")["3.5"]
    assert metrics["named_accuracy"] == pytest.approx(card["named_accuracy"], abs=0.02)
    assert metrics["named_accuracy"] >= 0.97
    low, high = card["intervals"]["validity"]
    assert low <= metrics["validity"] <= high
