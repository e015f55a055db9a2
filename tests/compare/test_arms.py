from pathlib import Path

import pytest

from dpdmd.compare.arms import Arm, arrange, parse_arm, parse_budget, parse_scales, parse_seeds
from dpdmd.recipe.toml import load_recipe


def test_an_arm_is_a_recipe_and_what_is_changed_in_it():
    assert parse_arm("scenes_dmd") == Arm("scenes_dmd", "scenes_dmd")
    arm = parse_arm("scenes_dp_dmd:objective.anchor.every=2,train.random_step=true")
    assert arm.name == "scenes_dp_dmd+every=2+random_step=true"
    assert arm.overrides == {"objective.anchor.every": "2", "train.random_step": "true"}
    recipe = load_recipe(arm.recipe, arm.settings())
    assert (recipe.objective.anchor.every, recipe.train.random_step) == (2, True)


def test_a_comma_within_a_value_parts_nothing():
    arm = parse_arm("scenes_dmd:train.betas=[0.9, 0.99],train.warmup=3")
    assert arm.overrides == {"train.betas": "[0.9, 0.99]", "train.warmup": "3"}
    assert load_recipe("scenes_dmd", arm.settings()).train.betas == (0.9, 0.99)
    assert arm.name == Path(arm.name).name


def test_a_file_is_a_recipe_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:train.warmup=3.toml").write_text("")
    assert parse_arm("a:train.warmup=3.toml").overrides == {}
    assert parse_arm("folder/mine.toml").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes_dmd:depth=2", "a setting must be SECTION.KEY=VALUE, such as .* got 'depth=2'"),
        ("scenes_dmd:train.warmup", "a setting must be SECTION.KEY=VALUE"),
        ("scenes_dmd:train.seed=2", "train.seed is the same for all arms, set by --seeds"),
        (
            "scenes_dmd:train.warmup=1,train.max_seconds=2",
            "train.max_seconds is the same for all arms, set by --budget",
        ),
        ("scenes_dmd:output.folder=x", "output.folder is the same for all arms, set by --out"),
    ],
)
def test_what_is_no_setting_of_an_arm_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(text)


def test_seeds():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("0,2,5") == [0, 2, 5]
    assert parse_seeds("7, 0 - 1") == [7, 0, 1]
    for text in ("", "a", "1-", "-1", "1..3", "0-2,1", "3-2"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(text)


def test_budgets():
    assert parse_budget("150 steps").settings() == {"train.num_updates": 150}
    assert parse_budget("1 step").settings() == {"train.num_updates": 1}
    seconds = parse_budget("0.5seconds")
    assert seconds.settings()["train.max_seconds"] == 0.5
    assert [str(parse_budget(text)) for text in ("150 steps", "1 step", "600 seconds")] == [
        "150 steps",
        "1 step",
        "600 seconds",
    ]
    recipe = load_recipe("scenes_dmd", Arm("a", "scenes_dmd", seconds.settings()).settings())
    assert recipe.train.max_seconds == 0.5 and recipe.train.num_updates == 10**8
    for text in ("", "150", "steps", "0 steps", "1.5 steps", "-3 seconds", "10 minutes", "nan seconds"):
        with pytest.raises(ValueError, match='--budget must be like "150 steps" or "600 seconds"'):
            parse_budget(text)


def test_guidance_scales():
    assert parse_scales("5,1,2,3.5,1") == [1, 2, 3.5, 5]
    assert parse_scales("") == []
    for text in ("0.5", "a", "1;2", "nan", "inf"):
        with pytest.raises(ValueError, match="--guidance must be like"):
            parse_scales(text)


def test_models_are_run_once_and_students_with_every_seed(tmp_path):
    arms = [Arm("dmd", "scenes_dmd", {"train.num_updates": 3})]
    runs = arrange(tmp_path, [Arm("teacher", model="scenes")], arms, [0, 5])
    assert [(run.folder.relative_to(tmp_path).as_posix(), run.seed) for run in runs] == [
        ("teachers/teacher", None),
        ("seed-0/dmd", 0),
        ("seed-5/dmd", 5),
    ]
    assert runs[2].arm.overrides == {"train.seed": 5, "train.num_updates": 3} and arms[0].overrides == {
        "train.num_updates": 3
    }
