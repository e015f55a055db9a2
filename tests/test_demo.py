import pytest

from dpdmd import demo
from dpdmd.store.files import read_json
from dpdmd.world.prompts import evaluation_prompts

ARMS = {"teacher", "teacher_few_steps", "dmd", "dp_dmd"}
# Without effective_modes, which a prompt with fewer than two clean scenes among its few images does not have.
FIGURES = ("diversity", "diversity_share", "named_accuracy", "validity", "seconds", "saturation")


def test_students_differ_in_the_objective_alone():
    from dpdmd.recipe.toml import flatten, load_recipe

    dmd, dp_dmd = (flatten(load_recipe(name)) for name in ("scenes_dmd", "scenes_dp_dmd"))
    different = {key for key in dmd if dmd[key] != dp_dmd[key]}
    assert different == {
        "objective.name",
        "objective.anchor.weight",
        "objective.anchor.every",
        "objective.anchor.guidance_scale",
        "output.folder",
    }


@pytest.mark.parametrize("name", ["report.html", "overview.png", "metrics.json"])
def test_what_the_demo_cannot_write_is_reported_before_it_trains(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(demo, "run_and_measure", lambda *args, **options: pytest.fail("began to train"))
    with pytest.raises(OSError, match=f"cannot write .*{name}: Is a directory"):
        demo.run_demo(tmp_path)


@pytest.mark.slow
def test_the_demo_ends_in_a_report_and_repeats_itself(tmp_path, monkeypatch):
    """The whole demo with two updates and few images, twice: the same scores, except for time and memory."""
    monkeypatch.setattr(demo, "NUM_SEEDS", 3)
    monkeypatch.setattr(demo, "evaluation_prompts", lambda: evaluation_prompts()[:4])
    results = []
    for name in ("a", "b"):
        report = demo.run_demo(tmp_path / name, updates=2)
        page = report.read_text()
        assert "DP-DMD" in page and "http://" not in page.replace("http://www.w3.org", "")
        assert (tmp_path / name / "overview.png").stat().st_size > 0
        arms = read_json(tmp_path / name / "metrics.json")["arms"]
        assert set(arms) == ARMS
        for arm in arms.values():
            assert all(isinstance(arm[key], float) for key in FIGURES)
            assert arm["peak_memory_bytes"] > 0
        varying = ("seconds", "peak_memory_bytes", "training_seconds", "seconds_per_cycle", "training_memory_bytes")
        results.append({n: {k: v for k, v in arm.items() if k not in varying} for n, arm in arms.items()})
    assert results[0] == results[1]
