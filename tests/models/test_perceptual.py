"""The perceptual term on a stock family: through its real autoencoder, with the teacher identified by its files."""

import shutil

import pytest
import torch
from trainers import new_trainer

from dpdmd.models.load import load_adapter
from dpdmd.recipe.schema import Recipe


@pytest.fixture
def recipe(tmp_path):
    """recipe(folder, **settings) of a tiny SD3, whose pictures are as large as scenes."""

    def make(folder: str, **perceptual) -> Recipe:
        (tmp_path / "prompts.txt").write_text("a red circle\none cross\nthe small blue cross\n")
        data = {
            "model": {"teacher": folder, "num_inference_steps": 4, "height": 32, "width": 32},
            "student": {"num_steps": 2},
            "objective": {"name": "dmd_perceptual", "perceptual": perceptual},
            "data": {"prompts": str(tmp_path / "prompts.txt"), "cache": str(tmp_path / "cache")},
            "train": {"num_updates": 2, "batch_size": 2, "fake_updates": 1, "learning_rate": 1e-3},
            "output": {"folder": str(tmp_path / "run")},
        }
        return Recipe.model_validate(data)

    return make


@pytest.mark.parametrize("num_pairs", [None, 2])
@pytest.mark.parametrize("lora", [{}, {"roles": ("student", "fake_score"), "rank": 2}], ids=["copies", "shared"])
def test_two_cycles_move_student_and_fake_score_and_nothing_else(sd3_folder, recipe, num_pairs, lora):
    settings = recipe(sd3_folder, num_pairs=num_pairs)
    settings = Recipe.model_validate(settings.model_dump() | {"lora": lora})
    adapter = load_adapter(sd3_folder)
    trainer = new_trainer(settings, adapter)
    backbone = trainer.plan.objective.terms[1].distance.network
    frozen = [*adapter.vae.parameters(), *backbone.parameters()]
    trained = [p for role in ("student", "fake_score") for p in trainer.roles.parameters(role).values()]
    frozen += [p for p in trainer.network("teacher").parameters() if all(p is not other for other in trained)]
    before, start = [p.detach().clone() for p in frozen], [p.detach().clone() for p in trained]
    rows = [trainer.iterate() for _ in range(2)]
    assert all(row["loss/perceptual"] > 0 for row in rows)
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(frozen, before, strict=True))
    moved = [not torch.equal(p, old) for p, old in zip(trained, start, strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_in_bf16_and_one_by_one_it_is_nearly_the_same(sd3_folder, recipe):
    def first_loss(**train) -> float:
        settings = recipe(sd3_folder)
        settings = Recipe.model_validate(settings.model_dump() | {"train": settings.train.model_dump() | train})
        trainer = new_trainer(settings, load_adapter(sd3_folder))
        assert trainer.plan.objective.terms[1].pictures.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
        return trainer.iterate()["loss/perceptual"]

    exact = first_loss()
    assert first_loss(gradient_checkpointing=True) == pytest.approx(exact, rel=1e-4)
    rounded = first_loss(precision="bf16", gradient_checkpointing=True)
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != pytest.approx(exact, rel=1e-5)


def test_another_network_or_text_encoder_is_another_teacher_and_another_autoencoder_is_not(
    sd3_folder, recipe, tmp_path
):
    def identity_of(model: str) -> str:
        return new_trainer(recipe(model, num_pairs=2), load_adapter(model)).parts.teacher_samples.teacher

    first = identity_of(sd3_folder)
    assert identity_of(sd3_folder) == first
    for part, differs in (("vae", False), ("transformer", True), ("text_encoder", True)):
        shutil.copytree(sd3_folder, tmp_path / part)
        (tmp_path / part / part / "notes.txt").write_text("changed")
        assert (identity_of(str(tmp_path / part)) != first) == differs, part
