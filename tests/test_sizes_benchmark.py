"""The benchmark of several sizes: scenes through a window are drawn and read as the usual ones are."""

import pytest
import torch

from benchmarks import sizes
from benchmarks.sizes import ALONE, TOGETHER, measure, read_window, rendered_scores
from benchmarks.sizes_page import COLUMNS, table
from dpdmd.method.randomness import generator
from dpdmd.world.oracle import read_scenes
from dpdmd.world.prompts import evaluation_prompts
from dpdmd.world.scenes import render, sample_scenes
from tools.pretrain import sizes as pretrain_sizes
from tools.pretrain.sizes import SIZES, render_window


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(64, generator(0, "windows"))


def test_a_window_shows_the_same_plane(scenes):
    whole = render(scenes)
    assert torch.equal(render_window(scenes, 32, 32), whole)
    wide = render_window(scenes, 24, 40)
    torch.testing.assert_close(
        wide[:, :, :, 4:36], whole[:, :, 4:28], rtol=0, atol=1e-5
    )  # the shift is rounded in fp32
    tall = render_window(scenes, 40, 24)
    torch.testing.assert_close(tall[:, :, 4:36], whole[:, :, :, 4:28], rtol=0, atol=1e-5)
    twice = render_window(scenes, 64, 32)
    torch.testing.assert_close(twice[:, :, 16:48], whole, rtol=0, atol=1e-5)


def test_the_usual_size_is_read_by_the_oracle_itself(scenes):
    images = (render(scenes) + 0.05 * torch.randn(64, 3, 32, 32, generator=generator(0, "window_noise"))).clamp(-1, 1)
    ours, oracle = read_window(images), read_scenes(images)
    for name, values in oracle.scenes.discrete.items():
        assert torch.equal(ours.scenes.discrete[name], values)
    torch.testing.assert_close(ours.residual, oracle.residual)
    torch.testing.assert_close(ours.distortion, oracle.distortion)


@pytest.mark.parametrize("size", SIZES)
def test_scenes_through_a_window_are_clean_and_show_what_they_are(size):
    scores = rendered_scores(size, number=192)
    assert scores["clean"] >= 0.9 and scores["named_right"] >= 0.97  # 0.94 at 24 x 40, where large shapes are cut


@pytest.mark.slow
def test_it_measures_every_size(tmp_path, monkeypatch):
    """Of two sizes and three prompts, for the time it takes."""
    few = evaluation_prompts()[:3]
    monkeypatch.setattr(sizes, "evaluation_prompts", lambda: few)
    monkeypatch.setattr(sizes, "rendered_scores", lambda size: rendered_scores(size, number=32))
    for module in (sizes, pretrain_sizes):
        monkeypatch.setattr(module, "SIZES", ((24, 40), (40, 24)))
    rows = measure(tmp_path, [0], num_updates=1, images_per_prompt=2, num_steps=2, num_scenes=200)
    assert set(rows) == {"24x40", "40x24"}
    for of_size in rows.values():
        assert {"student of three sizes", "student of this size", "teacher", "rendered scenes"} <= of_size.keys()
        assert of_size["teacher"][0]["latent_distance"] == 0
    assert "| 24 x 40 | difference of the two |" in table(rows)


def test_the_table_pairs_the_students_by_seed():
    scores = dict.fromkeys(COLUMNS, 0.5)
    higher = [scores | {"clean": 0.75}, scores | {"clean": 0.5}]
    (difference,) = (
        line for line in table({"8x8": {TOGETHER: higher, ALONE: [scores] * 2}}).splitlines() if "diff" in line
    )
    # Differences .25 and 0: mean .125, half of the interval t(.975; 1) * .1768 / sqrt(2) = 12.706 * .125.
    assert [part.strip() for part in difference.split("|")][4] == "0.125 ± 1.588"
