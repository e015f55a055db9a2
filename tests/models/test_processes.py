"""The network of every family stands being wrapped for several processes."""

import importlib
from math import isfinite

import pytest
import torch
from processes import in_two_processes

from dpdmd.models.load import load_adapter
from dpdmd.train.config import Recipe
from dpdmd.train.distribution import whole
from dpdmd.train.trainer import Trainer

FAMILIES = ["sd3", "sdxl", "sana", "z_image", "flux", "qwen_image"]


def weights_after_one_iteration(recipe: Recipe, **options) -> torch.Tensor:
    """The student's, having checked that both processes hold the same."""
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=options)})
    trainer = Trainer(recipe, load_adapter(recipe.model.teacher))
    row = trainer.iterate()
    assert all(map(isfinite, row.values())), recipe.model.teacher
    weights = torch.cat([whole(p.detach()).flatten() for p in trainer.roles.parameters("student").values()])
    mine, theirs = trainer.accelerator.gather(weights[None])
    assert torch.equal(mine, theirs), recipe.model.teacher
    return mine


def iterate_each(recipes: list[Recipe]) -> None:
    for recipe in recipes:
        copied = weights_after_one_iteration(recipe)
        recompute = load_adapter(recipe.model.teacher).network_class._supports_gradient_checkpointing
        for options in ({"shard": True}, {"shard": True, "gradient_checkpointing": recompute}):
            sharded = weights_after_one_iteration(recipe, **options)
            # AdamW's first step is the sign of the gradient: a rounding error flips it where the gradient is nothing.
            far = ((sharded - copied).abs() > 1e-4).float().mean()
            assert far < 2e-3, (recipe.model.teacher, options, far)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"roles": ["student", "fake_score"], "rank": 2}], ids=["copies", "shared"])
def test_two_processes_of_every_family_stay_together_copied_and_sharded(lora, tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\nthe small blue cross on a white background\none cross\n")
    recipes = []
    for name in FAMILIES:
        height, width = importlib.import_module(f"tiny_{name}").IMAGE_SIZE
        model = {"teacher": tiny_folder(name), "num_inference_steps": 4, "height": height, "width": width}
        recipe = {
            "model": model,
            "student": {"num_steps": 2},
            "data": {"prompts": str(tmp_path / "prompts.txt")},
            "train": {"batch_size": 1, "fake_updates": 1, "learning_rate": 1e-3},
            "lora": lora,
            "output": {"folder": str(tmp_path / name)},
        }
        recipes.append(Recipe.model_validate(recipe))
    in_two_processes(iterate_each, recipes)
