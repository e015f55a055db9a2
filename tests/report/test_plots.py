"""Colours, curves of long logs, and the line of prompts."""

from itertools import combinations

import numpy as np
import pytest

from dpdmd.report.colours import ARM_COLOURS, OTHER_COLOURS
from dpdmd.report.curves import _smooth, curves, thinned
from dpdmd.report.points import outside, quality_metric, spread_rows, trade_off, trade_off_rows
from dpdmd.report.runs import ArmReport

COLOURS = (*ARM_COLOURS.values(), *OTHER_COLOURS)
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#14171a"


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return linear(colour) @ [0.2126, 0.7152, 0.0722]


def lab(colour):
    """CIELAB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear(colour) / [0.9505, 1, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("page", [LIGHT_PAGE, DARK_PAGE])
def test_every_colour_of_an_arm_is_seen_on_a_light_and_on_a_dark_page(page):
    for colour in COLOURS:
        light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_colours_of_arms_are_distinguishable():
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(COLOURS, 2)) >= 24


def test_thinned_curves_keep_their_ends_in_height_and_every_spike():
    values = np.random.default_rng(0).normal(size=12_000)
    values[7_777], values[3] = 40, -40
    kept = thinned(values, 250)
    assert len(kept) <= 251 and 7_777 in kept and 3 in kept and (np.diff(kept) > 0).all()
    assert list(thinned(values[:200], 250)) == list(range(200))


def test_the_moving_average_is_the_mean_of_what_lies_around():
    values = np.random.default_rng(0).normal(size=301)
    expected = [values[max(0, i - 10) : i + 11].mean() for i in range(301)]
    assert _smooth(values) == pytest.approx(expected)


def test_a_long_log_makes_no_large_plot():
    log = [{"step": i, "loss/dmd": float(i % 7)} for i in range(20_000)]
    figure = curves({"dmd": ArmReport("DMD", log=log)}, ("loss/",), (4, 2))["DMD loss"]
    assert all(len(line.get_xdata()) <= 251 for line in figure.axes[0].lines)
    assert max(line.get_xdata()[-1] for line in figure.axes[0].lines) == 19_999


def test_the_best_known_quality_that_two_arms_have_is_drawn():
    arms = {
        "teacher": ArmReport("Teacher", metrics={"diversity": 0.4, "clip_score": 31.0, "precision": 1.0}),
        "dmd": ArmReport("DMD", metrics={"diversity_share": 0.5, "clip_score": 30.0, "image_reward": 0.1}),
        "none": ArmReport("none", metrics={"clip_score": 30.0}),
    }
    quality = quality_metric(arms)
    assert quality.heading == "CLIPScore"
    points = [(row["arm"], row["diversity_share"], row["clip_score"]) for row in trade_off_rows(arms, quality)]
    assert points == [("Teacher", 1.0, 31.0), ("DMD", 0.5, 30.0)]
    assert quality_metric({"dmd": arms["dmd"]}) is None


def test_prompts_are_lined_up_by_what_they_kept():
    rows = [{"prompt": str(i), "diversity": d, "reference_diversity": 0.5} for i, d in enumerate((0.4, 0.1, 0.2))]
    rows += [{"prompt": "3", "diversity": 0.4, "reference_diversity": 0.0}, {"prompt": "4", "diversity_share": 0.3}]
    line = spread_rows({"dmd": ArmReport("DMD", metrics={"per_prompt": rows})})
    assert [row["diversity_share"] for row in line] == pytest.approx([0.2, 0.3, 0.4, 0.8])
    assert [row["place"] for row in line] == [1, 2, 3, 4]


def test_the_axes_are_for_the_students_and_name_what_is_far_off():
    def arm(label, share, quality):
        bounds = {"diversity_share": [share - 0.05, share + 0.05], "quality": [quality - 0.02, quality + 0.02]}
        return ArmReport(label, metrics={"diversity_share": share, "quality": quality, "intervals": bounds})

    arms = {
        "teacher": arm("Teacher", 1.0, 0.95),
        "teacher_few_steps": arm("Few", 0.8, 0.1),
        "dmd": arm("DMD", 0.5, 0.9),
    }
    metric = quality_metric(arms)
    axes = trade_off(arms, metric, (6, 4)).axes[0]
    assert axes.get_ylim()[0] > 80 and axes.get_xlim() == pytest.approx((45 - 7.2, 105 + 7.2))
    assert outside(arms, metric) == ["Few at 80 %, 10 %"]
    # The target begins where the teacher's interval does, and the drawing moves no limit.
    (region,) = (shape for shape in axes.collections if shape.get_alpha() == 0.07)
    box = region.get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0) == pytest.approx((80, 120, 93))
    near = arms | {"teacher_few_steps": arm("Few", 0.8, 0.88)}
    assert outside(near, metric) == []
