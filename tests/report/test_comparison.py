"""The report of a comparison, from a comparison.json without run folders."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import stats

from dpdmd.report.build import report_from_runs
from dpdmd.report.colours import arm_colours
from dpdmd.report.comparison import read_comparison
from dpdmd.report.differences import difference
from dpdmd.report.runs import ArmReport
from dpdmd.report.summary import answers
from dpdmd.store.files import read_json, write_json

HOSTILE = "<script>alert(1)</script>"
FAILED = {"step": 7, "error": "loss/dmd = inf"}


def summary(values):
    values = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {
        "mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half, "interval": "training seeds",
        "deviation": values.std(ddof=1), "values": values.tolist(),
    }  # fmt: skip


def teacher(share, quality):
    return {key: {"mean": v, "values": [v]} for key, v in (("diversity_share", share), ("quality", quality))}


def write_comparison(folder, ends, **more):
    """Students that end around `ends`, five seeds each, three points on the way; a teacher and its curve."""
    rng = np.random.default_rng(0)
    arms, paths = {"teacher": teacher(1.0, 0.95)}, {}
    for name, end in ends.items():
        seeds = np.clip(rng.normal(end, 0.03, (5, 2)), 0, None)
        arms[name] = {"diversity_share": summary(seeds[:, 0]), "quality": summary(seeds[:, 1])}
        arms[name]["failed"] = {"mean": 0.0, "values": [0.0] * 5}
        x = summary(seeds[:, 0])
        paths[name] = [{"step": i, "diversity_share": x, "quality": summary(seeds[:, 1] * i / 4)} for i in (1, 2, 3)]
    curve = [{"guidance_scale": g} | teacher(x, y) for g, x, y in ((1, 1.9, 0.3), (3.5, 1.0, 0.95), (8, 0.6, 0.9))]
    place = {"seed": 0, "folder": "seed-0/none", "failure": FAILED}
    content = {
        "arms": arms,
        "setup": {
            "teacher": "scenes", "guidance_scale": 3.5, "num_inference_steps": 30, "budget": "600 seconds", "jobs": 1,
            "seeds": [0, 1, 2, 3, 4], "num_prompts": 24, "images_per_prompt": 16, "path_images_per_prompt": 4,
            "students": {name: {"recipe": "r"} for name in ends},
        },
        "runs": {name: [place] for name in arms},
        "paths": paths,
        "curve": curve,
        "provenance": {},
    }  # fmt: skip
    write_json(folder / "comparison.json", content | more)
    return folder


CROWD = {
    "dmd": (0.67, 0.72), "dp_dmd": (0.79, 0.79), "adversarial": (0.74, 0.84), "perceptual": (0.83, 0.66),
    "deep": (0.82, 0.77), "coarse": (0.78, 0.785), "random step": (0.76, 0.74), "variation": (0.86, 0.7),
}  # fmt: skip


def drawn(folder):
    from dpdmd.report.pareto import pareto
    from dpdmd.report.plots import WIDE

    comparison = read_comparison(folder)
    return pareto(comparison, arm_colours(comparison.arms), WIDE), comparison


def test_every_arm_is_in_the_plot_with_its_name_next_to_it(tmp_path):
    figure, comparison = drawn(write_comparison(tmp_path, CROWD))
    axes = figure.axes[0]
    texts = {text.get_text(): text for text in axes.texts if text.get_text()}
    assert set(texts) == {arm.label for arm in comparison.arms.values()} | {"guidance 3.5", "guidance 8"}
    for name, arm in comparison.arms.items():
        mean = [100 * comparison.metrics[name][key]["mean"] for key in ("diversity_share", "quality")]
        point = axes.transData.transform(mean)
        assert axes.bbox.contains(*point)
        box = texts[arm.label].get_window_extent()
        nearest = np.clip(point, [box.x0, box.y0], [box.x1, box.y1])
        assert np.hypot(*(nearest - point)) < 0.1 * axes.bbox.width
    boxes = [text.get_window_extent() for text in texts.values()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1) for box in boxes)


def test_the_paths_end_in_the_means_and_grow_stronger(tmp_path):
    figure, comparison = drawn(write_comparison(tmp_path, {"dmd": (0.7, 0.7), "dp_dmd": (0.8, 0.8)}))
    colour = arm_colours(comparison.arms)["dmd"]
    segments = [
        line
        for line in figure.axes[0].lines
        if line.get_color() == colour and line.get_alpha() and len(line.get_xdata()) == 2
    ]
    assert len(segments) == 3
    mean = [100 * comparison.metrics["dmd"][key]["mean"] for key in ("diversity_share", "quality")]
    assert [segments[-1].get_xdata()[1], segments[-1].get_ydata()[1]] == pytest.approx(mean)
    assert all(a.get_alpha() < b.get_alpha() for a, b in pairwise(segments))


def test_a_point_of_the_curve_that_is_far_away_does_not_squeeze_the_arms(tmp_path):
    figure, _ = drawn(write_comparison(tmp_path, CROWD))
    low, high = figure.axes[0].get_xlim()
    assert low < 60 < 100 < high < 130


def test_up_to_fourteen_arms_have_colours_of_their_own():
    names = ["teacher", "teacher_few_steps", "dmd", "dp_dmd", *(f"arm {i}" for i in range(10))]
    assert len(set(arm_colours({name: ArmReport(name) for name in names}).values())) == 14


def test_the_best_students_are_those_that_no_other_beats_on_both_axes(tmp_path):
    ends = {"diverse": (0.9, 0.5), "good": (0.5, 0.9), "beaten": (0.45, 0.45)}
    sentences = read_comparison(write_comparison(tmp_path, ends)).sentences
    assert (
        "Judged by the means, no other student has both more diversity and better quality than diverse and good."
        in sentences
    )


def test_the_page_shows_plot_and_tables_and_keeps_names_as_text(tmp_path):
    write_comparison(tmp_path, {HOSTILE: (0.7, 0.7), "dp_dmd": (0.8, 0.8)})
    text = report_from_runs([tmp_path], tmp_path / "report.html").read_text()
    assert HOSTILE not in text and "&lt;script&gt;" in text
    assert not re.search(r"url\((?!#)|@import", text) and text.count("<svg") == 2
    assert "95 % intervals over the seeds (Student's t)".replace("'", "&#39;") in text
    assert "the more an update costs, the fewer of them fit" in text
    again = report_from_runs([tmp_path], tmp_path / "again" / "report.html")
    assert again.read_text() == text


def test_metrics_of_one_seed_do_not_stand_among_means_over_seeds(tmp_path):
    write_comparison(tmp_path, {"dmd": (0.7, 0.7)})
    rows = [{"prompt": "a", "diversity": 0.1, "reference_diversity": 0.4}]
    write_json(tmp_path / "seed-0" / "dmd" / "metrics.json", {"recall": 0.123, "quality": 0.1, "per_prompt": rows})
    content = read_json(tmp_path / "comparison.json")
    content["runs"]["dmd"] = [{"seed": 0, "folder": "seed-0/dmd", "failure": None}]
    write_json(tmp_path / "comparison.json", content)
    metrics = read_comparison(tmp_path).arms["dmd"].metrics
    assert "recall" not in metrics and metrics["per_prompt"] == rows
    assert metrics["quality"] == pytest.approx(0.7, abs=0.1)


def test_a_file_that_is_no_comparison_is_refused(tmp_path):
    content = read_json(write_comparison(tmp_path, CROWD) / "comparison.json")
    for broken in ({}, [], {key: value for key, value in content.items() if key != "setup"}):
        write_json(tmp_path / "comparison.json", broken)
        with pytest.raises(ValueError, match="was not written by dpdmd compare"):
            report_from_runs([tmp_path], tmp_path / "report.html")


def _arm(label, shares):
    rows = [{"prompt": str(i), "diversity": v, "reference_diversity": 1.0} for i, v in enumerate(shares)]
    metrics = {"diversity_share": float(np.nanmean([np.nan if v is None else v for v in shares]))}
    return ArmReport(label, metrics=metrics | {"values": {"diversity_share": shares}, "per_prompt": rows})


def test_students_of_several_seeds_are_compared_seed_by_seed():
    a, b = [0.8, 0.7, 0.9, 0.75], [0.7, 0.62, 0.79, 0.66]
    gap = difference(_arm("A", a), _arm("B", b), "diversity_share")
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))
    # A run that failed leaves its pair out.
    gap = difference(_arm("A", [*a, None]), _arm("B", [*b, 0.1]), "diversity_share")
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))
    mixed = {"dmd": _arm("DMD", [0.8, 0.6, 0.7]), "dp_dmd": _arm("DP-DMD", [0.7, 0.75, 0.72])}
    assert "in diversity is not settled by these 3 training seeds" in str(answers(mixed))
