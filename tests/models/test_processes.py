"""The network of every family stands being wrapped for several processes."""

import importlib
from math import isfinite

import pytest
import torch
from processes import in_two_processes

from dpdmd.models.load import load_adapter
from dpdmd.train.config import Recipe
from dpdmd.train.trainer import Trainer

FAMILIES = ["sd3", "sdxl", "sana", "z_image", "flux", "qwen_image"]


def iterate_each(recipes: list[Recipe]) -> None:
    for recipe in recipes:
        trainer = Trainer(recipe, load_adapter(recipe.model.teacher))
        row = trainer.iterate()
        assert all(map(isfinite, row.values())), recipe.model.teacher
        weights = torch.cat([p.detach().flatten() for p in trainer.roles.parameters("student").values()])
        mine, theirs = trainer.accelerator.gather(weights[None])
        assert torch.equal(mine, theirs), recipe.model.teacher


@pytest.mark.parametrize("lora", [{}, {"roles": ["student", "fake_score"], "rank": 2}], ids=["copies", "shared"])
def test_two_processes_of_every_family_stay_together(lora, tiny_folder, tmp_path):
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
