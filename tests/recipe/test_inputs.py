"""What a recipe names: looked up next to its file first, then in the working directory; outputs are not."""

from pathlib import Path

import pytest

from dpdmd.recipe.toml import dump_recipe, load_recipe

RECIPE = """
[model]
teacher = "model"
[data]
prompts = "prompts.txt"
[output]
folder = "runs/x"
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(folder of the recipe, working directory), each with prompts.txt; the model is in the first alone."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "prompts.txt").write_text("a red circle")
    (there / "model").mkdir()
    (there / "my.toml").write_text(RECIPE)
    monkeypatch.chdir(here)
    return there, here


def test_inputs_are_found_next_to_the_file_and_outputs_stay_with_the_working_directory(places):
    there, _ = places
    recipe = load_recipe("../there/my.toml")
    assert Path(recipe.model.teacher).samefile(there / "model") and Path(recipe.model.teacher).is_absolute()
    assert recipe.output.folder == "runs/x"


def test_a_name_is_reserved_only_where_it_means_something_else(places):
    there, _ = places
    for name in ("teacher", "generic", "scenes"):
        (there / name).mkdir()
    (there / "my.toml").write_text(RECIPE.replace('"model"', '"teacher"').replace('"prompts.txt"', '"generic"'))
    recipe = load_recipe(there / "my.toml")
    assert recipe.model.teacher == str(there / "teacher") and recipe.data.prompts == "generic"
    assert recipe.objective.adversarial.real == "teacher" and recipe.objective.perceptual.backbone == "scenes"


def test_what_is_not_next_to_the_file_is_found_in_the_working_directory(places):
    there, here = places
    (there / "prompts.txt").unlink()
    assert load_recipe(there / "my.toml").data.prompts == str(here / "prompts.txt")


def test_overrides_name_files_in_the_working_directory(places):
    there, here = places
    recipe = load_recipe(there / "my.toml", ["data.prompts=prompts.txt"])
    assert recipe.data.prompts == str(here / "prompts.txt")
    assert load_recipe("scenes_dp_dmd", ["data.prompts=prompts.txt"]).data.prompts == str(here / "prompts.txt")


def test_what_does_not_exist_and_reserved_names_stay_as_they_are(places):
    there, _ = places
    for name in ("scenes", "auto", "generic"):
        (there / name).mkdir()
    sets = ["model.teacher=owner/name", "data.prompts=datasets:x/y"]
    recipe = load_recipe(there / "my.toml", sets)
    assert (recipe.model.teacher, recipe.data.prompts) == ("owner/name", "datasets:x/y")
    (there / "my.toml").write_text(RECIPE.replace('"model"', '"scenes"').replace('"prompts.txt"', '"generic"'))
    recipe = load_recipe(there / "my.toml")
    assert (recipe.model.teacher, recipe.data.prompts, recipe.validation.features) == ("scenes", "generic", "auto")


def test_several_sources_are_each_looked_up_and_written_back(places):
    there, here = places
    (there / "more.txt").write_text("x")
    listed = RECIPE.replace('"prompts.txt"', '["more.txt", {source = "prompts.txt", weight = 3}, "generic"]')
    (there / "my.toml").write_text(listed)
    recipe = load_recipe(there / "my.toml")
    sources = ((str(there / "more.txt"), 1.0), (str(there / "prompts.txt"), 3.0), ("generic", 1.0))
    assert recipe.data.sources == sources
    (here / "copy.toml").write_text(dump_recipe(recipe))
    assert load_recipe(here / "copy.toml") == recipe
    with pytest.raises(ValueError, match=r"data\.prompts.*weight should be greater than 0, got 0"):
        load_recipe(there / "my.toml", ['data.prompts=[{source="generic", weight=0}]'])


def test_a_single_value_is_taken_where_a_list_is_meant(places):
    there, _ = places
    sets = ["lora.roles=student", "lora.targets=to_q", "validation.prompts=a cat", "output.trackers=tensorboard"]
    recipe = load_recipe(there / "my.toml", sets)
    assert (recipe.lora.roles, recipe.lora.targets) == (("student",), ("to_q",))
    assert (recipe.validation.prompts, recipe.output.trackers) == (("a cat",), ("tensorboard",))
    with pytest.raises(ValueError, match=r"lora\.roles"):
        load_recipe(there / "my.toml", ["lora.roles=studnet"])
