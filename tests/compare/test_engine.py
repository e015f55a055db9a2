"""`dpdmd compare` from arguments to report: orchestration with commands that are not run, and once for real."""

import csv
import math
import random
import re
import time

import pytest

from dpdmd import cli
from dpdmd.compare import commands, engine, measure
from dpdmd.compare.arms import Arm, Budget, arrange
from dpdmd.compare.engine import compare_recipes, run_and_measure
from dpdmd.evaluate.manifest import read_manifest
from dpdmd.report import build
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import peak_memory_bytes

RECIPES = ["scenes_dmd", "scenes_dp_dmd:objective.anchor.every=2"]


@pytest.fixture
def fast(called, monkeypatch):
    """Commands that are not run, images that are not looked at, speed that is not timed, plots that are not drawn."""

    def evaluate(folder, *, reference, out, **_):
        assert (reference / "manifest.json").exists()
        prompts = sorted({entry.prompt for entry in read_manifest(folder).images})
        rng = random.Random(str(folder.parent.relative_to(folder.parents[2])))
        rows = [
            {"prompt": p, "diversity": rng.random(), "validity": rng.random(), "named_accuracy": 1.0} for p in prompts
        ]
        share = 1.0 if folder == reference else rng.random()
        images = len(read_manifest(folder).images) // len(prompts)
        metrics = {
            "images_per_prompt": images,
            "diversity_share": share,
            "intervals": {"diversity_share": [share, share]},
            "per_prompt": rows,
        }
        write_json(out, metrics)
        return metrics

    monkeypatch.setattr(measure, "evaluate_folder", evaluate)
    monkeypatch.setattr(engine, "measure_speeds", lambda *_: None)
    for plots in ("trade_off_plots", "training_plots"):
        monkeypatch.setattr(build, plots, lambda *_: [])
    return called


@pytest.fixture
def in_process(monkeypatch):
    """Commands that are run, without the seconds that a new process needs to begin."""

    def call(arguments, **_):
        started = time.perf_counter()
        cli.app([*arguments], standalone_mode=False)
        return {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes(), "exit_code": 0}

    monkeypatch.setattr(commands, "_call", call)


def compare(out, prompts, recipes=RECIPES, **options):
    defaults = {
        "names": [], "seeds": [0, 3], "budget": Budget(150, "steps"), "sets": [], "guidance": [1.0, 3.5],
        "prompts": prompts, "images_per_prompt": 5,
    }  # fmt: skip
    return compare_recipes(recipes, out, **(defaults | options))


def lines(out):
    with (out / "comparison.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_comparison_needs_a_teacher(tmp_path, prompts):
    runs = arrange(tmp_path, [], [Arm("dmd", "scenes_dmd")], [0])
    with pytest.raises(ValueError, match='one arm must be called "teacher"'):
        run_and_measure(runs, tmp_path, prompts=prompts)


def test_all_arms_and_seeds_end_in_one_report(fast, prompts, tmp_path):
    report = compare(tmp_path, prompts)
    trained = [call for call in fast.calls if call[0] == "train"]
    assert len(trained) == 4 and all("train.num_updates=150" in call for call in trained)
    content = read_json(tmp_path / "comparison.json")
    assert list(content["arms"]) == ["teacher", "teacher_few_steps", "scenes_dmd", "scenes_dp_dmd+every=2"]
    dmd = content["arms"]["scenes_dmd"]
    assert dmd["quality"]["interval"] == "training seeds" and len(dmd["quality"]["values"]) == 2
    assert content["arms"]["teacher"]["quality"]["interval"] == "prompts"
    assert (dmd["extra_parameters"]["mean"], dmd["forwards_per_update"]["mean"], dmd["grad_norm_spikes"]["mean"]) == (
        10,
        32,
        1,
    )
    assert [point["guidance_scale"] for point in content["curve"]] == [1.0, 3.5]
    assert content["curve"][1]["diversity_share"]["mean"] == pytest.approx(1.0)
    assert [point["step"] for point in content["paths"]["scenes_dmd"]] == [50, 100]
    page = report.read_text()
    for text in ("What did training cost?", "How steadily did it train?", "2 training seeds (0, 3), 150 steps each"):
        assert text in page
    # Teacher, few steps and guidance 1; two arms of two seeds, each with two points on the way.
    rows = lines(tmp_path)
    assert len(rows) == 3 + 4 + 8
    assert {(row["images_per_prompt"], row["updates"]) for row in rows if row["seed"]} == {
        ("5", "30"),
        ("4", "50"),
        ("4", "100"),
    }


def test_a_killed_comparison_continues_arm_by_arm(fast, prompts, tmp_path, monkeypatch):
    sample, left = fast.sample, [4]

    def dying(arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return sample(arguments)

    monkeypatch.setattr(fast, "sample", dying)
    killed = 0
    while True:
        left[0] = 4
        try:
            compare(tmp_path, prompts)
            break
        except KeyboardInterrupt:
            killed += 1
    once = [call for call in fast.calls if "--resume" not in call]
    assert killed >= 3 and sum(call[0] == "train" for call in fast.calls) == 4
    finished = [path for path in tmp_path.rglob("cost_sample.json")]
    assert len(finished) == len({call for call in once if call[0] == "sample"}) == 3 + 4 + 8


def test_changed_arguments_are_refused_before_anything_runs(fast, prompts, tmp_path):
    compare(tmp_path, prompts)
    number = len(fast.calls)
    for change in ({"budget": Budget(151, "steps")}, {"sets": ["train.warmup=3"]}, {"images_per_prompt": 6}):
        with pytest.raises(ValueError, match="choose another folder or remove this one"):
            compare(tmp_path, prompts, **change)
    compare(tmp_path, prompts, seeds=[0, 3, 4])
    assert len(fast.calls) == number + 2 * 4  # the new seed alone: trained, sampled, two points on the way


def test_failed_runs_are_counted_and_reported(fast, prompts, tmp_path):
    fast.fails = {"seed-3/scenes_dmd": 1}
    page = compare(tmp_path, prompts).read_text()
    arms = read_json(tmp_path / "comparison.json")["arms"]
    assert arms["scenes_dmd"]["failed"]["values"] == [0.0, 1.0]
    assert arms["scenes_dmd"]["quality"]["values"][1] is None and arms["scenes_dmd"]["quality"]["interval"] == "prompts"
    assert "scenes_dmd failed with seed 3 after update 30: loss/dmd = inf." in page


def test_arms_that_all_failed_leave_a_report_of_the_others(fast, prompts, tmp_path):
    fast.fails = {"scenes_dmd": 1}
    page = compare(tmp_path, prompts).read_text()
    arms = read_json(tmp_path / "comparison.json")["arms"]
    assert "quality" not in arms["scenes_dmd"] and arms["scenes_dmd"]["failed"]["mean"] == 1
    assert "scenes_dmd failed with seed 0" in page and "scenes_dmd failed with seed 3" in page


def test_one_seed_is_called_one_seed(fast, prompts, tmp_path):
    page = compare(tmp_path, prompts, seeds=[2]).read_text()
    arms = read_json(tmp_path / "comparison.json")["arms"]
    assert arms["scenes_dmd"]["quality"]["interval"] == "prompts"
    assert "one training seed (2)" in page and "Every student was trained once" in page


def test_a_budget_of_seconds_is_explained(fast, prompts, tmp_path):
    page = compare(tmp_path, prompts, budget=Budget(2.5, "seconds"), jobs=2).read_text()
    trained = next(call for call in fast.calls if call[0] == "train")
    assert "train.max_seconds=2.5" in trained
    assert "the more an update costs, the fewer of them fit" in page and "2 runs shared the machine" in page


def test_names_that_a_user_typed_stay_text(fast, prompts, tmp_path):
    name = "<b>&$x_1$"
    page = compare(tmp_path, prompts, names=[name, "ours"]).read_text()
    assert name not in page and "&lt;b&gt;&amp;$x_1$" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images_per_prompt": 1}, "--images-per-prompt must be at least 2"),
        ({"recipes": ["scenes_dmd", "scenes_eps_dp_dmd"]}, "arms must share the teacher"),
        ({"sets": ["train.lerning_rate=1"]}, "did you mean train.learning_rate"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_no_files(fast, prompts, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "out", prompts, **options)
    assert not fast.calls and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_arms_of_the_built_in_teacher_are_compared(in_process, prompts, tmp_path):
    """Two updates of batch two, two seeds, two prompts: files, plots, page; then nothing is left to do."""
    options = {
        "names": ["dmd", "dp_dmd"], "seeds": [0, 1], "budget": Budget(2, "steps"), "images_per_prompt": 3,
        "sets": ["train.batch_size=2", "train.fake_updates=2", "checkpoint.every=1"], "guidance": [1.0],
    }  # fmt: skip
    page = compare(tmp_path, prompts, ["scenes_dmd", "scenes_dp_dmd"], **options).read_text()
    content = read_json(tmp_path / "comparison.json")
    for name, forwards in (("dmd", 10.5), ("dp_dmd", 12 + 1 / 6)):
        arm = content["arms"][name]
        assert arm["updates"]["values"] == [2, 2] and arm["failed"]["mean"] == 0
        # Two rollouts to a random step (DP-DMD's fake score learns those of its student's update: one), one call of it
        # with a graph; two fake scores; guided teacher and fake score.
        # Before the random one of four steps 3, 2 and 1 of four samples remain, in batches of two at least one of two:
        # 3/4 + 1/2 + 1/2 calls per sample. DP-DMD has an anchored step, a random one of three (2/3 + 1/2), and four
        # guided calls of the anchor in an update on average.
        assert arm["forwards_per_update"]["mean"] == pytest.approx(forwards)
        assert all(math.isfinite(arm[key]["mean"]) for key in ("diversity_share", "quality", "seconds_per_cycle"))
        assert [point["step"] for point in content["paths"][name]] == [1]
        assert (tmp_path / "seed-1" / name / "students" / "step-000002" / "student.safetensors").exists()
    assert len(lines(tmp_path)) == 3 + 4 + 4
    sections = (
        "The same prompts",
        "Diversity against quality",
        "Losses",
        "Prompt by prompt",
        "What did training cost?",
    )
    assert re.search(".*".join(map(re.escape, sections)), page, re.DOTALL)
    assert "DP-DMD" in page and "pareto.csv" in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    compare(tmp_path, prompts, ["scenes_dmd", "scenes_dp_dmd"], **options)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_under_a_budget_of_seconds_the_costlier_arm_gets_fewer_updates(in_process, prompts, tmp_path):
    compare(
        tmp_path, prompts, ["scenes_dmd", "scenes_dmd:train.fake_updates=60"], names=["cheap", "costly"], seeds=[0],
        budget=Budget(3, "seconds"), sets=["train.batch_size=2"], guidance=[], images_per_prompt=2,
    )  # fmt: skip
    arms = read_json(tmp_path / "comparison.json")["arms"]
    cheap, costly = (arms[name] for name in ("cheap", "costly"))
    assert cheap["updates"]["mean"] > costly["updates"]["mean"] >= 1
    for arm in (cheap, costly):
        # Over by one update at most.
        assert 3 <= arm["training_seconds"]["mean"] < 3 + 10 * arm["seconds_per_cycle"]["mean"]
