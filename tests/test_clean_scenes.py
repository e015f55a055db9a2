"""The difference of two shares of clean scenes, parted into what is drawn and how well."""

import pytest

from benchmarks.clean_scenes import by, decompose

EASY, HARD = ("circle", "small", "white"), ("cross", "large", "white")


def images(clean, of):
    return [True] * clean + [False] * (of - clean)


def test_the_same_scenes_drawn_worse_are_all_rate_and_harder_scenes_all_composition():
    better, worse = {EASY: images(8, 8), HARD: images(6, 8)}, {EASY: images(6, 8), HARD: images(2, 8)}
    same_scenes = decompose(worse, better)
    assert same_scenes == pytest.approx({"difference": -0.375, "composition": 0, "rate": -0.375, "common": 1})
    harder = {EASY: images(2, 2), HARD: images(6, 8)}
    as_well = decompose(harder, better)
    assert as_well == pytest.approx({"difference": -0.075, "composition": -0.075, "rate": 0, "common": 1})


def test_both_parts_add_up_and_change_sign_with_the_sides():
    a, b = {EASY: images(5, 7), HARD: images(3, 11)}, {EASY: images(9, 10), HARD: images(2, 3)}
    ab, ba = decompose(a, b), decompose(b, a)
    assert ab["difference"] == pytest.approx(8 / 18 - 11 / 13)
    assert ab["composition"] + ab["rate"] == pytest.approx(ab["difference"])
    for key in ("difference", "composition", "rate"):
        assert ba[key] == pytest.approx(-ab[key])
    assert ab["composition"] != 0 != ab["rate"]


def test_only_common_cells_count_and_their_share_is_reported():
    alone = ("square", "small", "black")
    assert decompose({EASY: images(2, 4), alone: images(0, 12)}, {EASY: images(1, 4)}) == pytest.approx(
        {"difference": 0.25, "composition": 0, "rate": 0.25, "common": 0.25}
    )
    with pytest.raises(ValueError, match="no cell"):
        decompose({EASY: images(1, 1)}, {HARD: images(1, 1), EASY: []})


def test_coarser_cells_hold_all_images():
    cells = {EASY: images(2, 4), HARD: images(1, 3), ("cross", "small", "gray"): images(2, 2)}
    assert by(cells, 0) == {("circle",): images(2, 4), ("cross",): images(1, 3) + images(2, 2)}
    assert by(cells, 1, 2)[("small", "white")] == images(2, 4)
