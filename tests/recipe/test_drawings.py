"""The recipes of the drawings: the settings found on scenes, and what students spend."""

from dpdmd.models.load import load_adapter
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.world.find import world_of_teacher


def test_dp_dmd_has_the_settings_of_the_flow_of_scenes_but_for_two_that_were_found_on_drawings():
    ours, theirs = (load_recipe(f"{name}_dp_dmd").model_dump() for name in ("drawings", "scenes"))
    for recipe in (ours, theirs):
        assert world_of_teacher(recipe["model"].pop("teacher")).name == recipe["data"].pop("prompts")
        del recipe["output"]
    assert (ours["train"].pop("learning_rate"), theirs["train"].pop("learning_rate")) == (2.5e-4, 5e-4)
    scales = [recipe["objective"]["anchor"].pop("guidance_scale") for recipe in (ours, theirs)]
    assert scales == [3.0, 3.25]
    assert ours == theirs


def test_the_recipes_spend_the_forwards_that_they_state():
    spent = []
    for name in ("drawings_dmd", "drawings_dp_dmd"):
        recipe = load_recipe(name)
        forward, backward = forwards_per_update(resolve(recipe, load_adapter(recipe.model.teacher)))
        spent.append(recipe.train.num_updates * (forward + 2 * backward))
    assert spent == [4800, 4800]
