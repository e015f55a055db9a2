"""The world of drawings: plain prompts, an oracle that knows its own drawings, and exact metrics."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from dpdmd.vision.features import extract_features
from dpdmd.world.drawings.captions import (
    EMPTY,
    caption,
    drawings_of,
    evaluation_prompts,
    training_prompts,
    with_article,
)
from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import VALID_DISTANCE, distances, read_drawings
from dpdmd.world.drawings.world import read_images
from tools.drawings.sets import SETS


@pytest.fixture(scope="module")
def pairs():
    """Distances between all drawings, infinite on the diagonal."""
    images = catalogue().images
    rows = torch.cat([distances(chunk) for chunk in images.split(64)])
    return rows.fill_diagonal_(torch.inf)


def test_articles():
    names = {
        "cactus": "a cactus",
        "ear of corn": "an ear of corn",
        "animal": "an animal",
        "pair of jeans": "a pair of jeans",
        "some sushi": "some sushi",
    }
    for name, expected in names.items():
        assert with_article(name) == expected
    assert caption("owl", 1) == "a drawing of an owl"
    assert caption("some grapes", 2) == "a picture of some grapes"


def test_every_caption_is_plain_words_and_means_its_own_drawings():
    known, members = catalogue(), drawings_of()
    assert len(members[EMPTY]) == len(known)
    for text in members:
        assert re.fullmatch(r"[a-z -]*", text)
        assert not re.search(r"\b(a [aeio]|an [^aeio])", text), text
    for i in range(3):
        things = torch.cat([members[caption(name, i)] for name in known.things])
        groups = torch.cat([members[caption(name, i)] for name in known.groups])
        assert sorted(things.tolist()) == sorted(groups.tolist()) == list(range(len(known)))
    assert all(6 <= len(members[caption(name)]) <= len(known.hands) for name in known.things)


def test_prompt_lists_are_captions_and_fixed():
    members = drawings_of()
    assert set(training_prompts()) <= set(members) and training_prompts() == training_prompts()
    evaluation = evaluation_prompts()
    assert len(set(evaluation)) == 24 and set(evaluation) <= set(members)
    groups = {int(catalogue().group[members[prompt][0]]) for prompt in evaluation}
    assert len(groups) >= 9


def test_hands_are_the_sets_that_the_pictures_were_rendered_from():
    assert catalogue().hands == tuple(one.name for one in SETS)


def test_the_oracle_knows_every_drawing_also_shifted_and_a_little_wrong():
    images = catalogue().images
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    shifted = F.pad(images, (1, 0, 1, 0), mode="replicate")[:, :, :32, :32]
    for changed, valid in ((images, 1.0), (images + noise, 1.0), (shifted, 0.98)):
        reading = read_drawings(changed)
        assert reading.drawing.tolist() == list(range(len(images)))
        # A few drawings reach the border, and lose a row or column when they are shifted.
        assert reading.valid.double().mean() >= valid


def test_no_clean_drawing_of_one_thing_is_one_of_another(pairs):
    known = catalogue()
    own = known.thing[:, None] == known.thing
    assert pairs[~own].min() > VALID_DISTANCE
    assert pairs[own].min() > 0.04


def test_blends_noise_and_blanks_are_not_valid():
    images, rng = catalogue().images, torch.Generator().manual_seed(1)
    blends = (images + images[torch.randperm(len(images), generator=rng)]) / 2
    assert read_drawings(blends).valid.double().mean() < 0.02
    assert not read_drawings(torch.rand(8, 3, 32, 32, generator=rng) * 2 - 1).valid.any()
    for gray in (-1.0, 0.0, 1.0):
        assert not read_drawings(torch.full((1, 3, 32, 32), gray)).valid.any()


def test_images_of_another_size_and_broken_ones_are_refused():
    with pytest.raises(ValueError, match="must be"):
        read_drawings(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="NaN"):
        read_drawings(torch.full((1, 3, 32, 32), math.nan))


def test_metrics_of_known_counts():
    """Of one prompt every drawing once, of the other one drawing always: exact values of both."""
    members = drawings_of()
    first, second = "a cactus", "a drawing of an owl"
    num = len(members[first])
    images = torch.cat(
        [catalogue().images[members[first]], catalogue().images[members[second][:1]].expand(num, -1, -1, -1)]
    )
    reading = read_images([first, second], images, images)
    assert [row.num_right for row in reading.per_prompt] == [num, num]
    assert [row.validity for row in reading.per_prompt] == [1.0, 1.0]
    assert reading.per_prompt[1].free_entropy == pytest.approx(0.0, abs=1e-12)
    others = len(members[second])
    assert reading.values["coverage"] == pytest.approx((1 + 1 / others) / 2)
    assert reading.values["total_variation_true"] == pytest.approx((0 + 1 - 1 / others) / 2)
    assert reading.values["total_variation_reference"] == 0
    wrong = read_images([second], catalogue().images[members[first]])
    assert wrong.per_prompt[0].num_right == 0 and wrong.per_prompt[0].free_entropy is None
    assert wrong.values["effective_modes_mean"] is None


def test_features_tell_drawings_apart():
    features = extract_features("drawings", catalogue().images[:40])
    assert features.pooled.shape == (40, 768) and features.places.shape == (40, 16, 48)
    cosine = F.cosine_similarity(features.pooled[:, None], features.pooled[None], dim=2)
    assert cosine.fill_diagonal_(0).mean().abs() < 0.3
