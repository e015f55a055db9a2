"""The tables of docs/results.md and docs/tables.md are those of the benchmark's results."""

import pytest

from benchmarks.pareto import (
    GROUPS,
    RIVAL_WEIGHTS,
    SOURCES,
    STUDENTS,
    finished,
    hybrids,
    main_arms,
    recorded,
    results,
    settings,
    teacher_arms,
    trained,
)
from benchmarks.pareto_page import (
    DIFFERENCES,
    LABELS,
    NOISE_PREDICTION,
    OURS,
    PAGES,
    RESULTS,
    cell,
    differences,
    fill,
    first_seeds,
    metric_cell,
    option_differences,
    picture,
    sections,
    sweep_differences,
)
from dpdmd.compare.arms import Run, arrange
from dpdmd.compare.summary import summarise
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json, write_json


@pytest.fixture(scope="module")
def arms():
    return read_json(RESULTS)["arms"]


@pytest.mark.parametrize(("path", "name"), zip(PAGES, ("main", "short"), strict=True), ids=str)
def test_the_pages_show_the_results(path, name, arms):
    page = path.read_text(encoding="utf-8")
    assert f"<!-- pareto {name} -->" in page
    assert fill(page, sections(arms, read_json(NOISE_PREDICTION)["arms"])) == page


def test_what_stands_between_markers_is_replaced_and_nothing_else():
    page = "a\n\n<!-- pareto x -->\n\nold\nold\n\n<!-- end -->\n\nb <!-- pareto y --><!-- end -->"
    filled = fill(page, {"x": "new", "y": "too"})
    assert filled == "a\n\n<!-- pareto x -->\n\nnew\n\n<!-- end -->\n\nb <!-- pareto y -->\n\ntoo\n\n<!-- end -->"
    assert fill(filled, {"x": "new", "y": "too"}) == filled
    with pytest.raises(KeyError, match="unknown"):
        fill("<!-- pareto unknown --><!-- end -->", {})


def test_cells_show_mean_and_interval():
    # Student's t of three values 0, 1, 2: 4.303 / sqrt(3).
    assert cell(summarise([0.0, 1.0, 2.0]), 2) == "1.00 ± 2.48"
    assert cell(summarise([0.5], [0.25, 0.75]), 2) == "0.50 [0.25, 0.75]"
    assert cell(summarise([0.5]), 2) == "0.50" and cell(None, 2) == ""


def test_failed_runs_are_counted_not_averaged():
    assert metric_cell({"failed": summarise([0.0, 1.0, 0.0, 1.0, 0.0])}, "failed") == "2"
    assert metric_cell({}, "failed") == ""


def test_differences_are_paired_by_seed():
    ours = {key: summarise([3.0, 5.0, 100.0]) for key in DIFFERENCES}
    dmd = {key: summarise([1.0, 3.0]) for key in DIFFERENCES}
    row = differences({OURS: ours, "dmd": dmd}).splitlines()[-1]
    assert row == "| DMD | 2 |" + " 2.000 ± 0.000 |" * len(DIFFERENCES)
    (row,) = option_differences({OURS: ours, "four_per_prompt": dmd}).splitlines()[2:]
    assert row == "| dp_dmd: `data.samples_per_prompt = 4` | 2 |" + " -2.000 ± 0.000 |" * len(DIFFERENCES)


def test_every_arm_has_a_name_of_its_own_and_every_main_arm_a_label(arms):
    names = [arm.name for make, _ in GROUPS.values() for arm in make()]
    assert len(set(names)) == len(names)
    assert {arm.name for arm in main_arms()} <= LABELS.keys()


def test_the_picture_can_be_drawn(arms, tmp_path):
    picture(arms).savefig(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_the_first_weight_of_a_rival_is_its_recipes():
    for name, (weight, *_) in RIVAL_WEIGHTS.items():
        assert getattr(load_recipe(f"scenes_dmd_{name}").objective, name).weight == weight


def test_metrics_of_the_first_seeds_ignore_the_others():
    arm = {"validity": summarise([0.9, 0.8, 0.1]), "forwards_per_update": summarise([13, 13, 13])}
    assert first_seeds(arm, 2) == {"validity": summarise([0.9, 0.8]), "forwards_per_update": summarise([13, 13])}


def test_sweeps_are_compared_at_the_same_setting(arms):
    changed = {name: {key: dict(own) for key, own in arm.items()} for name, arm in arms.items()}
    for name, share in (("dp_dmd_rate_0.001", [1.0, 0.9, 0.8]), ("dmd_rate_0.001", [0.5, 0.5, 0.5])):
        changed[name]["diversity_share"]["values"] = share
    (row,) = [line for line in sweep_differences(changed).splitlines() if "`train.learning_rate = 0.001`" in line]
    assert row.split(" | ")[1] == "3" and row.split(" | ")[3] == "0.400 ± 0.248"


def test_recorded_results_stand_for_runs_that_are_not_there(tmp_path):
    earlier = read_json(RESULTS)
    groups = {name: arrange(tmp_path, [], make(), list(range(seeds))) for name, (make, seeds) in GROUPS.items()}
    groups["main"] += hybrids(groups["main"])
    assert not any(finished(runs) for runs in groups.values())
    again = results(groups, [], earlier)
    expected = {name: arm for name, arm in earlier["arms"].items() if not name.startswith("teacher")}
    assert again["arms"].keys() == expected.keys()
    for name, arm in expected.items():
        assert again["arms"][name].keys() == arm.keys()
        for key, summary in arm.items():
            found = again["arms"][name][key]
            # What was measured is the same; scipy's t may round its last digit otherwise from version to version.
            assert found["values"] == summary["values"] and found.keys() == summary.keys()
            ends = {end: value for end, value in summary.items() if isinstance(value, float)}
            assert {end: found[end] for end in ends} == pytest.approx(ends, rel=1e-9, abs=1e-12)
            assert found.get("interval") == summary.get("interval")
    assert again["students"].keys() == again["arms"].keys() == STUDENTS.keys() | SOURCES.keys()
    for name, made in again["students"].items():
        assert made["seeds"] == earlier["students"][name]["seeds"]
        assert made["settings"] == trained(earlier["students"][name]["settings"])


def test_recorded_results_of_other_settings_or_seeds_count_for_nothing():
    earlier = read_json(RESULTS)
    run, other = (Run(STUDENTS["dmd"], RESULTS.parent, seed) for seed in (1, 99))
    assert recorded(earlier, run)["validity"] == earlier["arms"]["dmd"]["validity"]["values"][1]
    assert recorded(earlier, other) is None
    own = {"settings": settings("dmd") | {"student": {"shift": 2.0}}, "seeds": [0, 1]}
    assert recorded(earlier | {"students": {"dmd": own}}, run) is None
    assert recorded({"students": {}}, run) is None


def test_a_failed_run_is_counted(tmp_path):
    runs = arrange(tmp_path, [], [STUDENTS["dmd"]], [0])
    runs[0].folder.mkdir(parents=True)
    record = {"command": ["train"], "failure": {"step": 3, "error": "the loss is not finite"}}
    write_json(runs[0].folder / "cost_train.json", record)
    content = results({"main": runs}, arrange(tmp_path, teacher_arms(), [], []), {"students": {}})
    assert content["arms"]["dmd"]["failed"]["mean"] == 1
