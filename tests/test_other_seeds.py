"""Students at equal forwards: what a run must share with its record, and what the pages say of the results."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.other_seeds import (
    FLOORS,
    FORWARDS,
    GROUPS,
    RESULTS,
    record,
    recorded,
    settings,
    student_arms,
    teacher_arms,
)
from benchmarks.other_seeds_page import (
    COLUMNS,
    LABELS,
    PAGES,
    at_modes_of,
    clean_difference,
    difference,
    differences,
    fill,
    final,
    picture,
    sections,
    with_teachers_mean,
)
from dpdmd.compare.arms import Run, arrange
from dpdmd.models.load import load_adapter
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json


@pytest.fixture(scope="module")
def content():
    return read_json(RESULTS)


@pytest.mark.parametrize("group", GROUPS)
def test_all_students_spend_the_same_forwards(group):
    for arm in student_arms(group):
        recipe = load_recipe(arm.recipe, arm.settings())
        forward, backward = forwards_per_update(resolve(recipe, load_adapter(recipe.model.teacher)))
        one = forward + 2 * backward
        assert abs(recipe.train.num_updates * one - FORWARDS) <= one / 2, arm.name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_pages_show_the_results(page, content):
    text = page.read_text(encoding="utf-8")
    assert "<!-- other_seeds" in text and fill(text, sections(content), "other_seeds") == text


@pytest.mark.parametrize("group", GROUPS)
def test_the_results_are_of_the_settings_of_now(group, content):
    runs = arrange(Path("none"), teacher_arms(group), student_arms(group), list(range(5)))
    ours = [run for run in runs if run.arm.name == "dp_dmd" and recorded(content["rows"][group], run)]
    assert len(ours) == len(final(content["rows"][group], "dp_dmd")) >= 3
    assert {row["arm"] for row in content["rows"][group]} <= LABELS.keys() | set(FLOORS)


def test_a_run_is_recorded_once_and_only_with_its_settings(tmp_path):
    run = Run(student_arms("flow")[0], tmp_path, 1)
    row = {"arm": run.arm.name, "seed": 1, "settings": settings(run), "forwards": None}
    for number in (1, 2):
        record(tmp_path / "results.json", "flow", [row | {"number": number}])
    (rows,) = read_json(tmp_path / "results.json")["rows"].values()
    assert len(rows) == 1 and recorded(rows, run)["number"] == 2
    assert recorded(rows, replace(run, seed=2)) is None
    other = replace(run.arm, overrides=run.arm.overrides | {"train.learning_rate": 1e-3})
    assert recorded(rows, replace(run, arm=other)) is None
    assert recorded([row | {"forwards": 1200.0}], run) is None


def test_clean_scenes_minus_the_teachers():
    teacher = [{"clean": [1.0, 0.6]}, {"clean": [1.0, 0.4]}]
    mean, low, high = clean_difference([{"clean": [0.9, 0.4]}, {"clean": [0.8, 0.3]}], teacher)
    assert mean == pytest.approx(-0.15) and low == pytest.approx(-0.2) and high == pytest.approx(-0.1)
    # A prompt's own difficulty cancels, as student and teacher stay together; prompts that differ in it widen.
    _, low, high = clean_difference([{"clean": [0.9, 0.5]}], teacher)
    assert (low, high) == (pytest.approx(-0.1), pytest.approx(0.0))


def test_diversity_is_a_share_of_the_teachers_mean_over_all_sets_of_its_images():
    def row(arm, diversity, share):
        metrics = {"diversity": diversity, "diversity_share": share}
        return {
            "arm": arm,
            "seed": None,
            "forwards": None,
            "metrics": metrics,
            "intervals": {"diversity_share": [share] * 2},
        }

    # The reference has .2, the teacher on average (.2 + .3 + .4) / 3 = .3.
    rows = [row("floor", 0.3, 1.5), row("floor_0", 0.4, 2.0), row("dp_dmd", 0.27, 1.35)]
    shares = [found["metrics"]["diversity_share"] for found in with_teachers_mean(rows)]
    assert shares == pytest.approx([1.0, 4 / 3, 0.9])
    assert with_teachers_mean(rows)[2]["intervals"]["diversity_share"] == pytest.approx([0.9, 0.9])


def test_clean_scenes_at_the_modes_of_another():
    other = {"cells": {"a": [9, 10], "b": [20, 30], "c": [1, 1]}}
    ours = {"cells": {"a": [50, 100], "b": [1, 1], "d": [0, 7]}}
    # a: .5 - .9 with weight 10, b: 1 - 2/3 with weight 30; c and d are drawn by one alone.
    assert at_modes_of(ours, other) == pytest.approx((10 * -0.4 + 30 / 3) / 40)
    assert at_modes_of(other, other) == 0


def test_differences_are_paired_by_the_training_seeds_that_both_have():
    def row(arm, seed, value, forwards=None):
        return {"arm": arm, "seed": seed, "forwards": forwards, "metrics": dict.fromkeys(COLUMNS, value)}

    rows = [row("dp_dmd", seed, value) for seed, value in ((2, 0.7), (0, 0.5), (1, 0.6), (3, 9.0))]
    rows += [row("dp_dmd_before", seed, value) for seed, value in ((0, 0.4), (1, 0.2), (2, 0.4), (4, 7.0))]
    rows += [row("dmd", 3, 8.0), row("dp_dmd_before", 3, 5.0, forwards=1200.0)]
    rows += [row("floor", None, 0.1), row("floor_0", None, 0.3)]
    summary = difference(rows, "dp_dmd_before", "recall")
    # Of seeds 0 to 2 the differences are .1, .4 and .3: t_2(0.975) = 4.302653, and their variance is 7 / 300.
    half = 4.302653 * (7 / 300 / 3) ** 0.5
    assert summary["values"] == pytest.approx([0.1, 0.4, 0.3]) and summary["mean"] == pytest.approx(0.8 / 3)
    assert (summary["low"], summary["high"]) == pytest.approx((0.8 / 3 - half, 0.8 / 3 + half))
    # The teacher has no training seed: its mean, .2, is compared with every student.
    assert difference(rows, "teacher", "recall")["values"] == pytest.approx([0.3, 0.4, 0.5, 8.8])
    assert difference(rows, "dmd_perceptual", "recall") is None
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:3] for line in differences(rows).splitlines()[2:]}
    assert lines == {
        LABELS["teacher"]: ["4", "2.500 ± 6.684"],
        LABELS["dmd"]: ["1", "1.000"],
        LABELS["dp_dmd_before"]: ["3", "0.267 ± 0.379"],
    }


def test_the_picture_can_be_drawn(content, tmp_path):
    picture(content["rows"]["flow"]).savefig(tmp_path / "forwards.png")
    assert (tmp_path / "forwards.png").stat().st_size > 10_000
