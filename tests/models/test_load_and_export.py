"""Runs, exports and pipeline folders: one name, one model, the same pictures."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from snippets import pixels
from trainers import new_trainer

from dpdmd.audit import audit
from dpdmd.data.prompts import read_prompts
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.stock import generate_with_stock
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import network_denoiser
from dpdmd.models.identity import lora_identity, model_identity
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.sampling import hybrid_samples, student_samples
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import write_json
from dpdmd.store.png import to_uint8
from dpdmd.store.tensors import write_tensors
from dpdmd.vision.features import load_extractor
from dpdmd.vision.perceptual import PerceptualDistance
from dpdmd.vision.quality.load import quality_weights
from dpdmd.vision.weights import find_weights, weights_digest

TORCHVISION = "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil`"
GRID = [1.0, 0.9, 0.75, 0.5, 0.0]  # of the fixture `run`


def test_images_do_not_depend_on_the_batch_they_are_in(run, tmp_path):
    prompts = ["a red circle", "one cross"]
    generate_folder(str(run), prompts, out=tmp_path / "one", seeds=[0, 1], batch_size=1, progress=False)
    generate_folder(str(run), prompts, out=tmp_path / "all", seeds=[0, 1], batch_size=4, progress=False)
    assert np.abs(pixels(tmp_path / "one") - pixels(tmp_path / "all")).max() <= 1


def test_manifest_names_model_and_grid(run, tmp_path):
    generate_folder(str(run), ["one cross"], out=tmp_path / "out", seeds=[7], progress=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["images"] == [{"prompt": "one cross", "seed": 7, "file": "0000-000007.png"}]
    assert manifest["grid"] == GRID and manifest["guidance_scale"] == 1.0 and manifest["model"] == str(run)


def test_loading_says_nothing(run, capfd):
    sampler = load_sampler(str(run))
    sampler.adapter.encode(["a red circle"])
    assert capfd.readouterr() == ("", "")


def test_of_the_warnings_of_transformers_only_that_about_torchvision_is_silenced():
    logger = logging.getLogger("transformers.utils.import_utils")
    said = [logger.makeRecord("", logging.WARNING, "", 0, text, (), None) for text in (TORCHVISION, "`X` is slow")]
    assert [bool(logger.filter(record)) for record in said] == [False, True]


@pytest.mark.parametrize("form", ["run", "export"])
def test_a_hybrid_begins_with_the_base_not_the_student(form, run, sd3_folder, tmp_path):
    model = run if form == "run" else export_run(run, tmp_path / "export")
    settings = {"seeds": [5], "progress": False}
    manifest = generate_folder(
        str(model), ["one cross"], out=tmp_path / "a", teacher_first=True, num_inference_steps=8, **settings
    )
    assert manifest.info["teacher_first"] == {"num_inference_steps": 8, "guidance_scale": 3.5}
    # The same by hand, its two networks loaded apart.
    adapter, student = load_adapter(sd3_folder), load_sampler(str(run))
    base = network_denoiser(adapter, adapter.load_network())
    latents = hybrid_samples(
        GuidedTeacher(base, adapter.path, adapter.stock_grid(8), Guidance(3.5)),
        network_denoiser(adapter, student.network),
        [5],
        adapter.latent_shape(),
        adapter.encode(["one cross"]),
        adapter.encode([""]),
        student_grid=Grid(tuple(GRID)),
    )
    expected = to_uint8(adapter.decode(latents))[0].numpy().astype(int)
    assert np.abs(pixels(tmp_path / "a")[0] - expected).max() <= 1
    with pytest.raises(ValueError, match="--teacher-first needs a student whose first step is deterministic"):
        generate_folder(sd3_folder, ["one cross"], out=tmp_path / "b", teacher_first=True, **settings)
    assert not (tmp_path / "b").exists()


def test_bad_models_are_refused_in_one_sentence(run, sd3_folder, tmp_path):
    with pytest.raises(ValueError, match="neither a run that has written a student"):
        load_sampler(str(tmp_path))
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load_adapter(str(tmp_path))
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "model_index.json", {"_class_name": "KandinskyPipeline"})
    with pytest.raises(ValueError, match="KandinskyPipeline is not a supported family"):
        load_adapter(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="exists already"):
        export_run(run, tmp_path / "other")
    with pytest.raises(ValueError, match="has no student"):
        export_run(tmp_path, tmp_path / "new")
    write_tensors(run / "student" / "student.safetensors", {"pos_embed.pos_embed": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not fit"):
        load_sampler(str(run))


@pytest.mark.parametrize(
    "use",
    [
        load_adapter,
        load_sampler,
        model_identity,
        find_weights,
        weights_digest,
        lambda name: lora_identity(name, "scenes"),
        lambda name: audit(name, "scenes", out="audit"),
        lambda name: audit("scenes", name, out="audit"),
        lambda name: generate_with_stock(name, ["a red circle"], out="images", seeds=[0]),
        lambda name: PerceptualDistance(name, (32, 32)),
        lambda name: load_extractor(name),
        lambda name: quality_weights(f"hps_v21={name}"),
        lambda name: export_run(name, "export"),
        read_prompts,
    ],
)
def test_a_mistyped_path_is_refused_without_the_hub_by_whatever_takes_a_name(use, tmp_path, monkeypatch):
    for module, function in (
        ("diffusers.DiffusionPipeline", "load_config"),
        ("huggingface_hub", "snapshot_download"),
        ("transformers.AutoConfig", "from_pretrained"),
    ):
        monkeypatch.setattr(f"{module}.{function}", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "student").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"studnet.*; did you mean {tmp_path / 'student'}\?") as error:
        use("~/studnet")
    assert "\n" not in str(error.value)


def test_missing_and_broken_weights_are_named(sd3_folder, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(sd3_folder, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    adapter = load_adapter(str(folder))
    weights.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=r"pipeline: cannot read its transformer weights \(diffusion_pytorch_model"):
        adapter.load_network()
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"pipeline: cannot read its transformer weights: .*safetensors"):
        adapter.load_network()
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot read its transformer configuration"):
        load_adapter(str(folder))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GatedRepoError, "accept its licence on huggingface.co and log in with `hf auth login`"),
        (RepositoryNotFoundError, "huggingface.co has no such repository, or it is private and you are not logged in"),
        (LocalEntryNotFoundError, "not in the local cache and huggingface.co cannot be reached"),
    ],
)
def test_a_hub_id_that_cannot_be_had_is_explained_in_one_sentence(error, sentence, monkeypatch):
    response = SimpleNamespace(request=None, headers={}, status_code=403)
    cause = error("advice") if error is LocalEntryNotFoundError else error("advice", response=response)

    def load_config(source):
        raise OSError("many\nlines") from cause

    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    with pytest.raises(ValueError, match=sentence) as raised:
        load_adapter("some/model")
    assert str(raised.value).startswith(
        "'some/model' is neither a built-in model ('scenes', 'scenes_eps', 'drawings') nor a folder; as a hub id"
    )
    assert "\n" not in str(raised.value)


def test_a_student_refuses_another_number_of_steps(run, tmp_path):
    with pytest.raises(ValueError, match="trained for 4 steps"):
        generate_folder(str(run), ["one cross"], out=tmp_path / "x", seeds=[0], num_inference_steps=8)
    with pytest.raises(ValueError, match="no value twice"):
        generate_folder(str(run), ["a", "a"], out=tmp_path / "x", seeds=[0])
    with pytest.raises(ValueError, match="guidance_scale must be >= 1"):
        generate_folder(str(run), ["one cross"], out=tmp_path / "x", seeds=[0], guidance_scale=0.5)
    assert not (tmp_path / "x").exists()


def recipe(tmp_path, teacher: str, **sections: dict) -> Recipe:
    (tmp_path / "prompts.txt").write_text("a red circle\none cross\n")
    data = {
        "model": {"teacher": teacher},
        "student": {"num_steps": 2},
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 1, "batch_size": 2, "fake_updates": 1, "learning_rate": 1e-3},
        "output": {"folder": str(tmp_path / "next")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


def test_an_exported_student_can_teach_another_run_on_its_own_grid(run, tmp_path):
    out = str(export_run(run, tmp_path / "export"))
    plan = resolve(recipe(tmp_path, out), load_adapter(out))
    assert list(plan.teacher.grid.times) == GRID and plan.teacher.guidance.scale == 1.0
    with pytest.raises(ValueError, match="is a student of 4 steps and takes no other number, got 30"):
        resolve(recipe(tmp_path, out, model={"num_inference_steps": 30}), load_adapter(out))
    info = json.loads((tmp_path / "export" / "student.json").read_text())
    write_json(tmp_path / "export" / "student.json", info | {"kind": "renoise"})
    with pytest.raises(ValueError, match="a teacher must be deterministic"):
        resolve(recipe(tmp_path, out), load_adapter(out))


def test_names_in_recipe_and_student_file_are_checked_before_anything_is_loaded(run, sd3_folder, tmp_path):
    with pytest.raises(ValueError, match=rf"{run}/studnet does not exist; did you mean {run}/student\?"):
        resolve(recipe(tmp_path, sd3_folder, student={"start": f"{run}/studnet"}), load_adapter(sd3_folder))
    info = json.loads((run / "student" / "student.json").read_text())
    write_json(run / "student" / "student.json", info | {"base": f"{tmp_path}/moved/teacher"})
    with pytest.raises(
        ValueError, match=rf"the base of the student {run}/student: {tmp_path}/moved/teacher does not exist"
    ):
        load_sampler(str(run))


@pytest.mark.parametrize("form", ["run", "export"])
def test_a_student_can_start_from_another(form, run, sd3_folder, tmp_path):
    start = str(run) if form == "run" else str(export_run(run, tmp_path / "export"))
    trainer = new_trainer(recipe(tmp_path, sd3_folder, student={"start": start}), load_adapter(sd3_folder))
    expected, teacher = load_sampler(start).network.state_dict(), load_adapter(sd3_folder).load_network().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.network("student").state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in trainer.network("fake_score").state_dict().items())
    assert all(p.requires_grad for p in trainer.network("student").parameters())


def test_a_start_of_another_size_is_refused(sd3_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sd3_folder, other)
    config = SD3Transformer2DModel.load_config(sd3_folder, subfolder="transformer")
    SD3Transformer2DModel.from_config(config | {"num_layers": 1}).save_pretrained(other / "transformer")
    with pytest.raises(ValueError, match=r"student\.start: .*other does not fit the teacher .*: \d+ weights differ"):
        new_trainer(recipe(tmp_path, sd3_folder, student={"start": str(other)}), load_adapter(sd3_folder))


def test_a_student_is_sampled_at_another_size_on_its_own_grid(run, sd3_folder, tmp_path):
    size = {"height": 48, "width": 32}
    info = generate_folder(str(run), ["one cross"], out=tmp_path / "a", seeds=[5], progress=False, **size).info
    assert info["grid"] == GRID and info["image_size"] == [48, 32]
    sampler = load_sampler(str(run))
    shape = sampler.adapter.latent_shape(48, 32)
    denoise = network_denoiser(sampler.adapter, sampler.network)
    cond = sampler.adapter.encode(["one cross"])
    latents = student_samples(denoise, sampler.adapter.path, [5], shape, cond, grid=Grid(tuple(GRID)))
    expected = to_uint8(sampler.adapter.decode(latents))[0].numpy().astype(int)
    assert expected.shape == (48, 32, 3) and np.abs(pixels(tmp_path / "a")[0] - expected).max() <= 1
    with pytest.raises(ValueError, match="made with image_size"):
        generate_folder(str(run), ["one cross"], out=tmp_path / "a", seeds=[5], progress=False)
    with pytest.raises(ValueError, match="height must be divisible by"):
        generate_folder(sd3_folder, ["one cross"], out=tmp_path / "b", seeds=[5], height=49, width=32)
    assert not (tmp_path / "b").exists()
