"""A trainer from a recipe, as `dpdmd train` makes it."""

from dpdmd.models.load import load_adapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.training.parts import build_parts
from dpdmd.training.trainer import Trainer


def new_trainer(recipe: Recipe) -> Trainer:
    """The trainer of a run before its first update; nothing is written."""
    adapter = load_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    return Trainer(plan, build_parts(plan, adapter))
