"""Every shipped recipe of a real model resolves on a tiny pipeline of its family, and a run of it completes."""

import importlib
import re

import pytest
from PIL import Image
from trainers import train

from dpdmd.evaluate.generate import generate_folder
from dpdmd.models.load import load_adapter, planning_adapter
from dpdmd.planning.cost import describe
from dpdmd.planning.fit import GIB
from dpdmd.planning.new import COMMENTS, new_recipe
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.settings import settings_for
from dpdmd.recipe.toml import load_recipe, shipped_recipes
from dpdmd.store.files import read_json
from dpdmd.world.find import WORLDS
from tools.recipes import FAMILIES, FOLDER, RECIPES, text_of

# Family of the shipped recipes -> its tiny pipeline.
PIPELINES = {family: family for family in FAMILIES} | {
    "sd35_medium": "sd3",
    "flux_dev": "flux",
    "sd15": "sd1",
    "sd21": "sd2",
}
TINY = {name: PIPELINES[name.removesuffix("_dp_dmd").removesuffix("_lora_24gb")] for name in RECIPES}
# Weights that tests can train in one process: quantised ones need packages, and bf16 does not show that an export draws
# the same.
IN_FP32 = ["model.dtype=fp32", "train.precision=fp32", "train.shard=false"]


def test_every_family_has_a_recipe_for_all_weights_and_one_for_adapters_within_24_gib():
    assert set(RECIPES) == {f"{family}_{kind}" for family in FAMILIES for kind in ("dp_dmd", "lora_24gb")}
    assert set(TINY) == {name for name in shipped_recipes() if not name.startswith(tuple(WORLDS))} == set(RECIPES)


@pytest.mark.parametrize("name", TINY)
def test_a_shipped_recipe_is_what_new_writes_from_the_table_of_settings(name):
    # What `dpdmd new` changes to fit the memory is compared by the slow test below.
    recipe, (model, trained, memory, number) = load_recipe(name), RECIPES[name]
    adapter = planning_adapter(model)
    kind = settings_for(adapter.latent_shape(), trained)
    anchor, train = recipe.objective.anchor, recipe.train
    assert recipe.model.teacher == model and recipe.data.prompts == "generic"
    assert train.batch_size * train.accumulation * number == kind.batch_size * kind.accumulation
    assert train.shard == (number > 1)
    for key in (
        "num_updates",
        "fake_updates",
        "ida_decay",
        "reuse_samples",
        "learning_rate",
        "schedule",
        "random_step",
        "ema_decay",
        "precision",
    ):
        assert getattr(train, key) == getattr(kind, key)
    is_flow = adapter.prediction_space == "velocity"
    assert anchor.weight == (kind.anchor_weight)
    assert (anchor.fraction, anchor.target) == (kind.anchor_fraction, "secant" if is_flow else "x0")
    assert anchor.coarse_steps == (4 if is_flow else 3)
    scale = adapter.guidance_scale
    guided = pytest.approx(max(1, scale * 13 / 14), abs=1e-4) if is_flow and scale > 1 else None
    assert anchor.guidance_scale == guided
    assert recipe.model.guidance_scale == adapter.guidance_scale
    assert recipe.lora.roles == (() if trained == "all" else ("student", "fake_score"))
    # A picture is left out only where the autoencoder does not fit beside the rest.
    assert recipe.validation.every in (kind.validation_every, 0)
    text = (FOLDER / f"{name}.toml").read_text()
    assert f"of {memory} GiB" in text.partition("\n")[0] and re.search(r"GiB( on each)?, which fits: ", text)
    assert {line.partition("  # ")[2] for line in text.splitlines()} <= {"", *COMMENTS.values()}


@pytest.mark.parametrize("name", TINY)
def test_a_shipped_recipe_passes_our_own_lint_without_a_warning(name, monkeypatch):
    monkeypatch.setattr("dpdmd.recipe.resolve.missing_package", lambda dtype: None)  # of this machine, not the recipe
    recipe = load_recipe(name)
    adapter = planning_adapter(recipe.model.teacher)
    # What is said of a model's saved scheduler is not about the recipe.
    assert resolve(recipe, adapter).notes == adapter.notes


@pytest.mark.slow
def test_a_shipped_recipe_is_written_anew_to_the_last_character():
    assert (FOLDER / "sana_lora_24gb.toml").read_text() == text_of("sana_lora_24gb")


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
    return name, [*(f"{key}={value}" for key, value in settings.items()), *IN_FP32]


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
    assert plan.notes == adapter.notes


def test_a_shipped_recipe_trains_resumes_samples_and_exports(shipped, tmp_path):
    name, overrides = shipped
    tiny = ["train.batch_size=1", "train.accumulation=1", "train.fake_updates=1", "validation.every=0"]
    tiny += ["model.num_inference_steps=7", f"output.folder={tmp_path / 'run'}"]
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


def test_new_trains_all_weights_of_a_small_model_of_ones_own_and_adapters_when_asked(tiny_folder, tmp_path):
    folder = tiny_folder("sdxl")
    adapter, out = load_adapter(folder), tmp_path / "my.toml"
    for trained, roles in ((None, ()), ("adapters", ("student", "fake_score"))):
        options = {"memory": 24 * GIB, "name": "my", "num_steps": 3, "trained": trained}
        out.write_text(new_recipe(folder, adapter, **options).text)
        recipe = load_recipe(out)
        assert recipe.lora.roles == roles and recipe.model.teacher == folder and recipe.student.num_steps == 3
        assert recipe.objective.anchor.target == "x0"
        assert (recipe.model.height, recipe.model.width) == tuple(
            side * adapter.vae_factor for side in adapter.latent_shape()[1:]
        )
