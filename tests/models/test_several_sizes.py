"""A run of several sizes: one size in each update, grids and pictures of each, exports that draw them all."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from snippets import drawn_by_card, pixels
from trainers import new_trainer, train

import dpdmd
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.samples import read_samples
from dpdmd.models.load import load_adapter
from dpdmd.models.student_file import StudentFile
from dpdmd.planning.cost import describe
from dpdmd.planning.fit import memory_need
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import dump_recipe, load_recipe
from dpdmd.report.build import report_from_runs
from dpdmd.report.runs import at_size, read_runs
from dpdmd.report.validation import films
from dpdmd.store.jsonl import read_rows
from dpdmd.store.tensors import read_tensors

PROMPTS = ["a red circle", "one cross"]
SIZES = [(32, 48), (48, 32), (32, 32)]


def make_recipe(folder: str, place, sizes=SIZES, **sections) -> Recipe:
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    data = {
        "model": {
            "teacher": folder,
            "num_inference_steps": 4,
            "sizes": [{"height": height, "width": width} for height, width in sizes],
        },
        "student": {"num_steps": 2},
        "data": {"prompts": str(place / "prompts.txt"), "cache": str(place / "cache")},
        "train": {"num_updates": 4, "batch_size": 1, "accumulation": 2, "fake_updates": 1, "learning_rate": 1e-2},
        "validation": {"every": 0},
        "output": {"folder": str(place / "run")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


def batches(recipe: Recipe, adapter, *, num_processes: int = 1, accumulation: int = 2, steps: int = 6):
    """Per step the size and noise of each micro-batch of all processes, in their order."""
    trainer = new_trainer(recipe, adapter)
    sources = [
        replace(trainer.batches, rank=rank, num_processes=num_processes, accumulation=accumulation)
        for rank in range(num_processes)
    ]
    return [
        [source.micro_batch(role, step, index) for index in range(accumulation) for source in sources]
        for step in range(steps)
        for role in ("student", "fake_score")
    ]


def test_all_micro_batches_of_an_update_have_one_size_whatever_the_processes(sd3_folder, tmp_path):
    recipe, adapter = make_recipe(sd3_folder, tmp_path), load_adapter(sd3_folder)
    one = batches(recipe, adapter)
    two = batches(recipe, adapter, num_processes=2, accumulation=1)
    assert len({batch.size for update in one for batch in update}) == 3
    shapes = [adapter.latent_shape(*size) for size in SIZES]
    for update, other in zip(one, two, strict=True):
        assert len({batch.size for batch in update}) == 1
        for batch, same in zip(update, other, strict=True):
            assert batch.noise.shape[1:] == shapes[batch.size] and torch.equal(batch.noise, same.noise)


def test_sizes_have_their_shares_of_the_updates(sd3_folder, tmp_path):
    model = {"sizes": [{"height": 32, "width": 48, "weight": 3.0}, {"height": 48, "width": 32}]}
    recipe = make_recipe(sd3_folder, tmp_path)
    recipe = Recipe.model_validate(recipe.model_dump() | {"model": recipe.model.model_dump() | model})
    source = new_trainer(recipe, load_adapter(sd3_folder)).batches
    number = 2000
    first = sum(source.size(step) == 0 for step in range(number)) / number
    assert abs(first - 0.75) < 4 * (0.75 * 0.25 / number) ** 0.5  # four standard deviations


def test_a_resumed_run_ends_with_the_same_weights(sd3_folder, tmp_path):
    weights = []
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        place = tmp_path / name
        place.mkdir()
        for i, number in enumerate(parts):
            own = {"num_updates": number, "batch_size": 1, "accumulation": 2, "fake_updates": 1, "learning_rate": 1e-2}
            run = train(make_recipe(sd3_folder, place, train=own), load_adapter(sd3_folder), resume=i > 0)
        weights.append(read_tensors(run / "student" / "student.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    teacher = load_adapter(sd3_folder).load_network().state_dict()
    assert any(not torch.equal(tensor, teacher[name]) for name, tensor in weights[0].items())


def test_each_size_has_the_grids_of_a_run_of_its_own_and_the_largest_is_counted(tiny_folder, tmp_path):
    folder = tiny_folder("flux")
    adapter = load_adapter(folder)
    sizes = [(32, 32), (64, 96)]
    plan = resolve(make_recipe(folder, tmp_path, sizes), adapter)
    for i, size in enumerate(sizes):
        own, at = resolve(make_recipe(folder, tmp_path, [size]), adapter), plan.at(i)
        assert at.student.grid == own.student.grid and at.teacher.grid == own.teacher.grid
        assert at.anchor_steps == own.anchor_steps and at.latent_shape == own.latent_shape
    assert plan.at(0).student.grid != plan.at(1).student.grid
    assert memory_need(plan, adapter).total == memory_need(plan.at(1), adapter).total
    assert memory_need(plan, adapter).total > memory_need(plan.at(0), adapter).total
    assert "32 x 32: 1, " in describe(plan, adapter) and "; 64 x 96: 1, " in describe(plan, adapter)


def test_an_export_draws_every_size_on_its_grid_by_the_number_of_steps_alone(tiny_folder, tmp_path):
    """FLUX's shift follows the size: the exported scheduler's as well, also at a size that was not trained."""
    folder, sizes = tiny_folder("flux"), [(32, 32), (64, 96)]
    run = train(make_recipe(folder, tmp_path, sizes), load_adapter(folder), progress=False)
    info = StudentFile.read(run / "student")
    assert [(size.height, size.width) for size in info.sizes] == sizes and info.grid == info.sizes[0].grid
    out = export_run(run, tmp_path / "export")
    card = (out / "README.md").read_text()
    assert "Trained at 32 x 32, 64 x 96 pixels (height x width). The scheduler shifts the grid with the size" in card
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["use_dynamic_shifting"] is True
    pipeline: FluxPipeline = DiffusionPipeline.from_pretrained(out)
    for height, width in [*sizes, (96, 96)]:
        arguments = {"num_inference_steps": 2, "height": height, "width": width, "guidance_scale": 3.5}
        arguments |= {} if info.embedded_guidance is None else {"guidance_scale": info.embedded_guidance}
        generator = torch.Generator().manual_seed(0)
        image = pipeline(PROMPTS[0], generator=generator, output_type="np", **arguments).images[0]
        for name, model in (("run", run), ("export", out)):
            place = tmp_path / f"{name}_{height}"
            generate_folder(str(model), PROMPTS[:1], out=place, seeds=[0], height=height, width=width, progress=False)
            assert np.abs(255 * image - pixels(place)[0]).max() <= 1.5  # both are rounded to 8 bits
    assert np.abs(drawn_by_card(out, folder) - pixels(tmp_path / "run_32")[0]).max() <= 1


def test_validation_shows_each_size(sd3_folder, tmp_path):
    recipe = make_recipe(sd3_folder, tmp_path, validation={"every": 4, "num_seeds": 2})
    run = train(recipe, load_adapter(sd3_folder), progress=False)
    for folder in ("", "48x32", "32x32"):
        assert (run / "validation" / folder / "step-000004.png").is_file()
    row = read_rows(run / "validation" / "scores.jsonl")[-1]
    each = [row[f"validation/{name}/quality"] for name in ("32x48", "48x32", "32x32")]
    assert row["validation/quality"] == pytest.approx(sum(each) / 3)


def test_what_cannot_have_several_sizes_is_refused(sd3_folder, tmp_path):
    adapter = load_adapter(sd3_folder)
    text = dump_recipe(make_recipe(sd3_folder, tmp_path))
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(tmp_path / "recipe.toml", ["model.sizes=[[32, 48], [48, 32], [32, 32]]"]) == load_recipe(
        tmp_path / "recipe.toml"
    )
    for override, message in (
        ("model.sizes=[[32, 48], [32, 48]]", "sizes must differ"),
        ("model.height=32", "set sizes, or height and width, not both"),
        ("model.sizes=[[32]]", r"model\.sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(tmp_path / "recipe.toml", [override])
    with pytest.raises(ValueError, match="width must be divisible by"):
        resolve(load_recipe(tmp_path / "recipe.toml", ["model.sizes=[[32, 48], [32, 31]]"]), adapter)
    with pytest.raises(ValueError, match=r"model\.sizes: dmd_adversarial has networks or samples that are of one size"):
        resolve(load_recipe(tmp_path / "recipe.toml", ["objective.name=dmd_adversarial"]), adapter)


def test_evaluate_and_report_cover_every_size(sd3_folder, tmp_path):
    recipe = make_recipe(sd3_folder, tmp_path, SIZES[:2], validation={"every": 4, "num_seeds": 1})
    run = train(recipe, load_adapter(sd3_folder), progress=False)
    metrics = dpdmd.evaluate_run(run, images_per_prompt=2, out=run / "metrics.json")
    first, second = run / "evaluation", run / "evaluation" / "48x32"
    for folder, size in ((first, SIZES[0]), (second, SIZES[1])):
        for name in ("step-000004", "teacher"):
            assert {image.shape[1:] for image in read_samples(folder / name).images()} == {size}
    scored = evaluate_folder(second / "step-000004", reference=second / "teacher")
    assert metrics["image_size"] == "32x48" and metrics["further_sizes"]["48x32"] == scored
    arms = read_runs([run])
    arm, of_teacher = arms["run"].sizes["48x32"], at_size(arms, "48x32")["teacher"]
    assert arm.metrics["saturation"] == scored["saturation"] and list(arm.pictures) == [4]
    assert (arm.samples, of_teacher.samples) == (second / "step-000004", second / "teacher")
    assert arms["run"].samples == first / "step-000004"
    page = report_from_runs([run], tmp_path / "report.html").read_text()
    assert "All of this is about images of 32x48 pixels" in page and "<h3>48x32 pixels</h3>" in page
    assert [film.label for film in films(arms)] == ["run, 32x48 pixels", "run, 48x32 pixels"]
    assert page.count('id="size-1-') == len(PROMPTS)
