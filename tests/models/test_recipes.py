"""Every shipped recipe of a real model resolves on a tiny pipeline of its family, and a run of it completes."""

import importlib

import pytest
from PIL import Image
from trainers import train

from dpdmd.evaluate.generate import generate_folder
from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import describe
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe, shipped_recipes
from dpdmd.store.files import read_json

TINY = {
    "sd35_medium_dp_dmd": "sd3",
    "sdxl_dp_dmd": "sdxl",
    "flux_dev_dp_dmd": "flux",
    "sana_dp_dmd": "sana",
    "qwen_image_dp_dmd": "qwen_image",
    "z_image_dp_dmd": "z_image",
}
PAPER = ("sd35_medium_dp_dmd", "sdxl_dp_dmd")


def test_every_recipe_of_a_real_model_is_tried_here():
    assert set(TINY) == {name for name in shipped_recipes() if not name.startswith("scenes_")}


@pytest.fixture(scope="module", params=list(TINY.items()), ids=list(TINY))
def shipped(request, tmp_path_factory):
    """(recipe's name, settings that make it tiny)."""
    name, family = request.param
    module, folder = importlib.import_module(f"tiny_{family}"), tmp_path_factory.mktemp(name)
    module.save(folder / "teacher")
    (folder / "prompts.txt").write_text("a red circle\na blue cross\n")
    height, width = module.IMAGE_SIZE
    settings = {
        "model.teacher": folder / "teacher",
        "model.height": height,
        "model.width": width,
        "data.prompts": folder / "prompts.txt",
        "output.folder": folder / "run",
    }
    return name, [f"{key}={value}" for key, value in settings.items()]


def test_a_shipped_recipe_resolves_to_a_plan(shipped):
    name, overrides = shipped
    recipe = load_recipe(name, overrides)
    adapter = load_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    text = describe(plan, adapter)
    lines = dict(line.split("  ", 1) for line in text.splitlines() if not line.startswith("note"))
    assert lines["student"].strip() == f"4 steps, {recipe.student.kind}, grid 'uniform'"
    assert lines["latents"].strip().startswith(" x ".join(map(str, plan.latent_shape)))
    assert plan.student.grid.num_steps == 4
    assert plan.teacher.grid.num_steps == recipe.model.num_inference_steps
    # Where the paper names K, the lint says how far the student's first step goes past it; elsewhere nothing is wrong.
    assert [note for note in plan.notes if "the anchor is 5 teacher steps" not in note] == []
    assert bool(plan.notes) == (name in PAPER)


def test_a_shipped_recipe_trains_resumes_samples_and_exports(shipped, tmp_path):
    name, overrides = shipped
    tiny = ["train.batch_size=1", "train.accumulation=1", "train.fake_updates=1", "validation.every=0"]
    tiny += ["model.num_inference_steps=7", f"output.folder={tmp_path / 'run'}", "train.precision=fp32"]
    for updates, resume in ((1, False), (2, True)):
        recipe = load_recipe(name, [*overrides, *tiny, f"train.num_updates={updates}"])
        train(recipe, load_adapter(recipe.model.teacher), resume=resume, progress=False)
    assert read_json(tmp_path / "run" / "student" / "student.json")["updates"] == 2
    models = {"run": tmp_path / "run", "export": export_run(tmp_path / "run", tmp_path / "export")}
    for place, model in models.items():
        generate_folder(str(model), ["one cross"], out=tmp_path / place / "images", seeds=[5], progress=False)
    first, second = (Image.open(tmp_path / place / "images" / "0000-000005.png") for place in models)
    assert first.size[::-1] == (recipe.model.height, recipe.model.width)
    assert max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True)) <= 1
