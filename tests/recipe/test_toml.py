"""Recipes: read strictly, all mistakes at once, written so that they load back equal."""

import json
import re
import subprocess
import sys

import pytest

from dpdmd.recipe import toml as reading
from dpdmd.recipe.toml import dump_recipe, load_recipe, recipe_keys

GOOD = """
[model]
teacher = "scenes"
[data]
prompts = "scenes"
[output]
folder = "runs/x"
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_key_has_a_description():
    assert all(field.description for _, field in recipe_keys())


def test_defaults_are_the_papers(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    assert (recipe.student.num_steps, recipe.train.fake_updates, recipe.train.learning_rate) == (4, 5, 1e-5)
    assert (recipe.objective.name, recipe.objective.anchor.weight, recipe.train.max_grad_norm) == ("dp_dmd", 0.05, 1.0)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["objective.anchor.steps=10", "train.learning_rate=2e-4", "train.betas=[0.0, 0.99]", "model.guidance_scale=3"],
        ["lora.targets=['to_q']", "validation.every=5", 'validation.prompts=["a", "b \\" \\\\ ü 🙂"]'],
        [
            "objective.name=dmd_adversarial",
            "objective.adversarial.real=some/images",
        ],
        ["model.height=32", "model.width=32", "output.folder=a b#c", "student.grid=stock", "objective.name=dmd"],
    ],
)
def test_a_written_recipe_loads_back_equal(recipe_file, overrides):
    recipe = load_recipe(recipe_file(GOOD), overrides)
    assert load_recipe(recipe_file(dump_recipe(recipe))) == recipe


def test_control_characters_survive_writing(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": 'a\x7f\t\n"\\\x01'})})
    assert load_recipe(recipe_file(dump_recipe(recipe))) == recipe


def test_the_home_folder_is_written_out_in_every_key_that_names_a_place(recipe_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    keys = ["model.teacher", "student.start", "objective.perceptual.backbone", "objective.adversarial.real"]
    keys += ["data.prompts", "data.cache", "validation.features", "output.folder"]
    values = reading.flatten(load_recipe(recipe_file(GOOD), [f"{key}=~/x" for key in keys]))
    assert {key for key, value in values.items() if value == "/home/me/x"} == set(keys)
    assert load_recipe(recipe_file(GOOD), ["output.folder=a/~b"]).output.folder == "a/~b"


def test_overrides_win_and_an_empty_one_restores_the_default(recipe_file):
    path = recipe_file(GOOD + "[train]\nseed = 3\nlearning_rate = 1.0\n")
    recipe = load_recipe(path, ["train.seed=7", "train.learning_rate=", "objective.anchor.weight=1"])
    assert (recipe.train.seed, recipe.train.learning_rate, recipe.objective.anchor.weight) == (7, 1e-5, 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.lerning_rate=1",
            r"train.lerning_rate is not a key of a recipe, got 1; did you mean train.learning_rate\?",
        ),
        ("train.num_steps=4", r"did you mean student.num_steps\? \[train\] has: num_updates, max_seconds"),
        ("objective.anchor.weigth=1", r"did you mean objective.anchor.weight\?"),
        ("trian.seed=1", r"trian is not a key of a recipe; did you mean train\? sections are: model, student"),
        (
            "student.grid=unifrom",
            r"student.grid should be 'uniform' or 'stock', got 'unifrom'; did you mean 'uniform'\?",
        ),
        (
            "student.num_steps=1",
            "student.num_steps must be 2 to 8: one step, .*, would leave DMD nothing to train, got 1",
        ),
        ("objective.name=dpdmd", r"objective\.name must be one of dmd, dp_dmd, .*did you mean 'dp_dmd'\?, got 'dpdmd'"),
        ("train.time_jitter=0.5", r"train\.time_jitter was removed in dpdmd 0\.2\.0 .*negative-results.*got 0\.5"),
        ("objective.anchor.depth=2", r"objective\.anchor\.depth was removed in dpdmd 0\.2\.0"),
        ("objective.adversarial.loss=hinge", r"objective\.adversarial\.loss was removed .*got 'hinge'"),
        ("train.samples_per_prompt=2", r"train\.samples_per_prompt is called data\.samples_per_prompt since"),
        ("objective.adversarial.feature=teacher", r"did you mean objective\.adversarial\.features\?"),
        ("student.num_steps=9", "student.num_steps must be 2 to 8, got 9"),
        ("train.learning_rate=-1", "train.learning_rate should be greater than 0, got -1"),
        ("train.learning_rate=nan", "train.learning_rate should be a finite number, got nan"),
        ("train.batch_size=2.5", "train.batch_size should be a valid integer"),
        ("train.batch_size=true", "train.batch_size should be a valid integer, got True"),
        ("train.betas=[0.9, 1.0]", "train.betas.1 should be less than 1, got 1.0"),
        ("model.height=32", "model: set height and width, or neither, got height 32 and width None"),
        (
            'model.sizes=["512x512"]',
            r"model\.sizes\.0 should be \[height, width\] in pixels.*, got '512x512'$",
        ),
        ("model.sizes=[[32, 32, 32]]", r"model\.sizes\.0 should be \[height, width\] .*, got \[32, 32, 32\]$"),
        ("model.sizes=[]", r"model\.sizes must not be empty, got \[\] \(Several sizes \[height, width\]"),
        (
            "model.sizes=[{height=32, width=32, wight=2}]",
            r"did you mean weight\? .* has: height, width, weight",
        ),
        ("model.loras=[3]", r"model\.loras\.0 should be a name, or {path = .*, got 3$"),
        ("model.loras=[{weight = 2}]", r"model\.loras\.0\.path is required \(A \.safetensors file"),
        ("data.prompts=[3]", r"one problem:\n  data\.prompts\.0 should be a name, or {source = .*, got 3$"),
        ("data.prompts=3", r"one problem:\n  data\.prompts should be a valid string, or a list, got 3"),
        ("lora.targets=[]", r"lora\.targets must not be empty, got \[\]"),
        ("validation.prompts=[1]", r"one problem:\n  validation\.prompts\.0 should be a valid string, got 1"),
        ("train.betas=0.9", r"train\.betas should be a list, got 0\.9"),
        ("train.betas=[0.1, 0.2, 0.3]", r"train\.betas should have at most 2 values, not 3"),
        ("objective.anchor=3", r"objective\.anchor should be a table, got 3"),
        (
            "train.shard=mashine",
            r"train\.shard should be true or false, or 'machine'.* did you mean 'machine'\?",
        ),
        ("train.reuse_samples=3", r"one problem:\n  train\.reuse_samples should be true or false, or 'student', got 3"),
        ("objective.tau_low=0.99", "objective: tau_low must be below tau_high, got 0.99 and 0.98"),
        ("train.seed", r"'train.seed': an override reads section.key=value"),
        ("seed=1", "an override reads section.key=value"),
        ("train.seed.x=1", r"train.seed.x is not a key|train.seed should be"),
        ("data=3", "an override reads section.key=value"),
    ],
)
def test_a_mistake_is_named_with_what_came_and_what_is_allowed(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(GOOD), [override])


def test_all_mistakes_are_reported_at_once(recipe_file):
    text = '[model]\nteacher = "scenes"\n[train]\nseed = "x"\nstep = 1\n[student]\nnum_steps = 0\n'
    with pytest.raises(ValueError, match=r"recipe\.toml cannot be used, 5 problems:") as error:
        load_recipe(recipe_file(text), ["oops"])
    for part in ("'oops'", "train.seed", "train.step", "student.num_steps", "data.prompts", "output.folder"):
        assert part in str(error.value)


def test_an_override_is_blamed_for_what_the_file_alone_does_not_do(recipe_file):
    good, bad = recipe_file(GOOD), GOOD + "[train]\nseed = 'x'\n"
    for overrides, head in (
        (["train.step=1"], "the override 'train.step=1' cannot be used, one problem:"),
        (["oops", "train.seed=1"], "the override 'oops' cannot be used, one problem:"),
        # What excludes each other is named as a whole; what has no part in it is not.
        (
            ["model.sizes=[[32, 32]]", "model.height=32", "train.seed=1"],
            "the overrides 'model.sizes=[[32, 32]]', 'model.height=32' cannot be used, one problem:",
        ),
        (["data.samples_per_prompt=3"], "the override 'data.samples_per_prompt=3' cannot be used, one problem:"),
        (["model.teacher="], "the override 'model.teacher=' cannot be used, one problem:"),
    ):
        with pytest.raises(ValueError) as error:
            load_recipe(good, overrides)
        assert str(error.value).splitlines()[0] == head and str(good) not in str(error.value)
    path = recipe_file(bad)
    with pytest.raises(ValueError) as error:
        load_recipe(path, ["train.step=1", "train.warmup=2"])
    heads = [line for line in str(error.value).splitlines() if not line.startswith("  ")]
    assert heads == [
        f"{path} cannot be used, one problem:",
        "the override 'train.step=1' cannot be used, one problem:",
    ]
    assert load_recipe(path, ["train.seed=3"]).train.seed == 3


def test_sizes_and_one_size_exclude_each_other_in_one_sentence_that_says_how_to_choose(recipe_file):
    path = recipe_file(GOOD.replace("[data]", "height = 32\nwidth = 48\n[data]"))
    message = (
        r"model: set sizes, or height and width, not both, got sizes \[\[32, 32\]\], height 32 and width 48; an "
        r"override without a value, such as model\.height=, takes a key out$"
    )
    with pytest.raises(ValueError, match=message):
        load_recipe(path, ["model.sizes=[[32, 32]]"])
    recipe = load_recipe(path, ["model.sizes=[[32, 32]]", "model.height=", "model.width="])
    assert recipe.model.image_sizes == ((32, 32),)


def test_a_run_that_began_with_an_empty_list_of_sizes_has_one_size(tmp_path):
    text = GOOD.replace("[data]", "sizes = []\n[data]")
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.toml cannot be used, .*\n  model\.sizes must not be empty"):
        load_recipe(tmp_path / "recipe.toml")
    (tmp_path / "provenance.json").write_text("{}")
    assert load_recipe(tmp_path).model.image_sizes == ((None, None),)


def test_a_mistake_across_sections_is_said_without_an_empty_key(recipe_file):
    with pytest.raises(ValueError, match=r'one problem:\n  model\.dtype "fp8" needs train\.precision "bf16"'):
        load_recipe(recipe_file(GOOD), ["model.dtype=fp8"])


def test_a_section_that_is_missing_names_its_required_key(recipe_file):
    with pytest.raises(ValueError, match=r"data.prompts is required") as error:
        load_recipe(recipe_file('[model]\nteacher = "x"\n[output]\nfolder = "y"\n'))
    assert "one problem" in str(error.value)


def test_a_file_that_is_no_toml_or_missing_is_named(recipe_file, tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.toml is not valid TOML"):
        load_recipe(recipe_file("[model\n"))
    with pytest.raises(ValueError, match=r"no recipe file .*nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match=rf"did you mean {tmp_path / 'recipe.toml'}\?"):
        load_recipe(tmp_path / "recip.toml")


def test_a_place_without_a_run_is_named_without_the_shipped_recipes(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder without a run; name a recipe, or the output.folder"):
        load_recipe(tmp_path)
    with pytest.raises(ValueError) as refused:
        load_recipe("/no/such/folder")
    assert str(refused.value) == "there is no recipe file /no/such/folder and no run in a folder of that name"


def test_a_shipped_recipe_is_found_by_its_name_and_a_near_miss_gets_a_hint(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "scenes_dp_dmd.toml").write_text(GOOD)
    monkeypatch.setattr(reading, "files", lambda package: tmp_path)
    assert load_recipe("scenes_dp_dmd").model.teacher == "scenes"
    with pytest.raises(ValueError, match=re.escape("(scenes_dp_dmd); did you mean scenes_dp_dmd?")):
        load_recipe("scene_dpdmd")


@pytest.mark.parametrize("key", [*reading.REMOVED, *reading.MOVED])
def test_a_removed_key_away_from_its_old_default_is_refused_in_one_sentence(recipe_file, key):
    with pytest.raises(
        ValueError, match=rf"one problem:\n  {re.escape(key)} (was removed in|is called .* since) dpdmd 0"
    ):
        load_recipe(recipe_file(GOOD), [f"{key}=0.123"])


def test_removed_keys_at_their_old_defaults_change_nothing_and_are_named_in_one_warning(recipe_file, caplog):
    old = {key: default for key, default in reading.REMOVED.items() if default is not None} | {
        "train.samples_per_prompt": 1
    }
    path = recipe_file(GOOD + "[train]\ntime_jitter = 0.0\n")
    overrides = [f"{key}={json.dumps(default)}" for key, default in old.items() if key != "train.time_jitter"]
    with caplog.at_level("WARNING", logger="dpdmd"):
        for _ in range(2):  # a run reads its recipe several times
            found = load_recipe(path, overrides)
    assert found == load_recipe(recipe_file(GOOD))
    without_effect = "names keys that dpdmd 0.2.0 no longer has, at their old defaults, which changes nothing"
    assert caplog.messages == [
        f"{path} {without_effect}: train.time_jitter",
        f"an override {without_effect}: " + ", ".join(key for key in old if key != "train.time_jitter"),
    ]


def test_the_schema_and_the_reader_load_no_torch():
    code = "import sys, dpdmd.recipe.toml; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_key_of_a_recipe_is_described():
    keys = dict(reading.recipe_keys())
    assert all(field.description and field.description.endswith(".") for field in keys.values())
