"""The network of every family can be wrapped for several processes, and is restored from their checkpoint."""

import importlib
from math import isfinite

import pytest
import torch
from families import FAMILIES
from processes import in_processes
from trainers import new_trainer

from dpdmd.distributed.wrapping import full_tensor
from dpdmd.models.load import load_adapter
from dpdmd.recipe.schema import Recipe
from dpdmd.training.run.checkpoint import latest_checkpoint
from dpdmd.training.trainer import Trainer

# One of each adapter.
ADAPTERS = [family for family in FAMILIES if family not in ("sdxl_v", "sd2")]
ADVERSARIAL = {"name": "dmd_adversarial", "adversarial": {"weight": 1.0, "num_real": 2, "learning_rate": 0.1}}


def trainer_with(recipe: Recipe, **options) -> Trainer:
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=options)})
    return new_trainer(recipe, load_adapter(recipe.model.teacher))


def student_weights(trainer: Trainer) -> torch.Tensor:
    """All in one, having checked that both processes hold the same."""
    weights = torch.cat([full_tensor(p.detach()).flatten() for p in trainer.roles.parameters("student").values()])
    mine, theirs = trainer.accelerator.gather(weights[None])
    assert torch.equal(mine, theirs), trainer.plan.teacher.source
    return mine


def iterate_each(recipes: list[Recipe]) -> None:
    for recipe in recipes:
        family, checkpoints = recipe.model.teacher, recipe.output.folder
        recompute = load_adapter(family).network_class._supports_gradient_checkpointing
        copied = trainer_with(recipe)
        # An adapter is the harder thing to recompute: the one that was active in the forward pass.
        sharded = trainer_with(recipe, shard=True, gradient_checkpointing=recompute and bool(recipe.lora.roles))
        for trainer in (copied, sharded):
            assert all(map(isfinite, trainer.iterate().values())), family
        # AdamW's first step is the sign of the gradient: a rounding error flips it where the gradient is nothing.
        far = ((student_weights(sharded) - student_weights(copied)).abs() > 1e-4).float().mean()
        assert far < 2e-3, (family, far)
        sharded.save(checkpoints)
        copied.restore(latest_checkpoint(checkpoints))
        assert torch.equal(student_weights(copied), student_weights(sharded)), family


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "lora"),
    [({"name": "dp_dmd"}, {}), (ADVERSARIAL, {"roles": ["student", "fake_score"], "rank": 2})],
    ids=["dp_dmd, copies", "adversarial, shared"],
)
def test_two_processes_of_every_family_stay_together_copied_and_sharded(objective, lora, tiny_folder, tmp_path):
    """tests/training/test_processes.py crosses objectives and adapters on one small network."""
    (tmp_path / "prompts.txt").write_text("a red circle\nthe small blue cross on a white background\none cross\n")
    recipes = []
    for name in ADAPTERS:
        height, width = importlib.import_module(f"tiny_{name}").IMAGE_SIZE
        model = {"teacher": tiny_folder(name), "num_inference_steps": 4, "height": height, "width": width}
        recipe = {
            "model": model,
            "student": {"num_steps": 2},
            "objective": objective,
            "data": {"prompts": str(tmp_path / "prompts.txt")},
            # With a batch of one, Sana's sharded adapters cannot be recomputed in a backward pass that reaches x_t.
            "train": {"batch_size": 2 if objective is ADVERSARIAL else 1, "fake_updates": 1, "learning_rate": 1e-3},
            "lora": lora,
            "output": {"folder": str(tmp_path / name)},
        }
        recipes.append(Recipe.model_validate(recipe))
    in_processes(iterate_each, recipes)
