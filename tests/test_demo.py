from dataclasses import replace

import pytest

from dpdmd import demo
from dpdmd.store.files import read_json
from dpdmd.world.find import world_named
from dpdmd.world.prompts import evaluation_prompts

ARMS = {"teacher", "teacher_few_steps", "dmd", "dp_dmd"}
# Without effective_modes, which a prompt with fewer than two clean scenes among its few images does not have.
FIGURES = ("diversity", "diversity_share", "named_accuracy", "validity", "seconds", "saturation")


def test_students_share_all_but_the_objective_and_its_schedule():
    from dpdmd.recipe.toml import flatten, load_recipe

    dmd, dp_dmd = (flatten(load_recipe(name)) for name in ("scenes_dmd", "scenes_dp_dmd"))
    different = {key for key in dmd if dmd[key] != dp_dmd[key]}
    assert different == {
        "objective.name",
        "objective.anchor.weight",
        "objective.anchor.fraction",
        "objective.anchor.guidance_scale",
        "student.kind",
        "train.num_updates",
        "train.fake_updates",
        "train.learning_rate",
        "train.ida_decay",
        "train.reuse_samples",
        "train.schedule",
        "output.folder",
    }


@pytest.mark.parametrize("name", ["report.html", "overview.png", "metrics.json"])
def test_what_the_demo_cannot_write_is_reported_before_it_trains(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(demo, "run_and_measure", lambda *args, **options: pytest.fail("began to train"))
    with pytest.raises(OSError, match=f"cannot write .*{name}: it is a folder; name a file"):
        demo.run_demo(tmp_path)


@pytest.mark.slow
def test_the_demo_ends_in_a_report(tmp_path, monkeypatch):
    """The whole demo with two updates and few images."""
    monkeypatch.setattr(demo, "NUM_SEEDS", 3)
    few = replace(world_named(demo.WORLD), evaluation_prompts=lambda: evaluation_prompts()[:4])
    monkeypatch.setattr(demo, "world_named", lambda name: few)
    page = demo.run_demo(tmp_path, updates=2).read_text()
    assert "DP-DMD" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "overview.png").stat().st_size > 0
    arms = read_json(tmp_path / "metrics.json")["arms"]
    assert set(arms) == ARMS
    for arm in arms.values():
        assert all(isinstance(arm[key], float) for key in FIGURES)
        assert arm["peak_memory_bytes"] > 0
