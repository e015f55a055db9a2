"""A run that was stopped: sampled, evaluated, exported and gone on with by its folder, wherever it was moved."""

import shutil

import pytest
import torch
from trainers import train

import dpdmd
from dpdmd import cli
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import StudentFile
from dpdmd.publish.export import export_run
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json
from dpdmd.training.judge import draw_student_and_teacher

SMALL = ["train.batch_size=1", "train.fake_updates=1", "train.random_step=false", "validation.every=0"]
SMALL += ["checkpoint.every=1", "model.num_inference_steps=4", "train.num_updates=2", "train.ema_decay=0"]
KINDS = {
    "all weights": [],
    "averaged": ["train.ema_decay=0.5"],
    "LoRA": ['lora.roles=["student", "fake_score"]', "lora.rank=2"],
    "averaged LoRA": ["lora.roles=student", "lora.rank=2", "train.ema_decay=0.5", "train.ida_decay=1"],
}


def recipe_of(folder, more=()):
    return load_recipe("scenes_dp_dmd", [*SMALL, f"output.folder={folder}", *more])


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    """A run of two updates, with both checkpoints, of each kind of student."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    recipe = recipe_of(folder, KINDS[request.param])
    train(recipe, load_adapter(recipe.model.teacher), progress=False)
    return folder


def weights(model):
    return load_sampler(str(model)).network.state_dict()


def test_the_student_of_a_checkpoint_is_the_one_that_the_run_writes(finished):
    student, checkpoint = finished / "student", finished / "checkpoints" / "step-000002"
    mine, its = weights(student), weights(checkpoint)
    assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)
    earlier = weights(f"{finished}@1")
    assert any(not torch.equal(mine[key], earlier[key]) for key in mine)
    info = StudentFile.read(checkpoint)
    assert info.updates == 2 and info.grid == StudentFile.read(student).grid


def test_a_checkpoint_is_exported_as_its_run_is(finished, tmp_path):
    whole = export_run(finished / "student", tmp_path / "whole")
    at_step = export_run(finished / "checkpoints" / "step-000002", tmp_path / "at_step")
    mine, its = weights(whole), weights(at_step)
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_a_changed_checkpoint_is_refused(finished, tmp_path):
    copy = tmp_path / "step-000002"
    shutil.copytree(finished / "checkpoints" / "step-000002", copy)
    names = [n for n in ("pytorch_lora_weights", "ema", "student") if (copy / f"{n}.safetensors").exists()]
    with (copy / f"{names[0]}.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match="has changed since it was written"):
        load_sampler(str(copy))


def test_a_run_goes_on_by_its_folder_after_a_move_as_if_it_had_not_been_moved(tmp_path):
    steady = "train.schedule=constant"  # of the others the rate depends on the number of updates
    whole = dpdmd.train(recipe_of(tmp_path / "whole", [steady, "train.num_updates=3"]), progress=False)
    dpdmd.train(recipe_of(tmp_path / "parts", [steady]), progress=False)
    (tmp_path / "parts").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="--resume, replace it by --overwrite"):
        dpdmd.train(tmp_path / "moved", progress=False)
    seen = []
    moved = dpdmd.train(
        tmp_path / "moved", overrides=["train.num_updates=3"], resume=True, progress=False, callbacks=[seen.append]
    )
    assert moved.folder == tmp_path / "moved" and [row["step"] for row in seen] == [3]
    mine, its = weights(whole.student), weights(moved.student)
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_evaluate_takes_a_run_and_draws_student_and_teacher_for_the_same_prompts_and_seeds(
    tmp_path, monkeypatch, capsys
):
    run = dpdmd.train(recipe_of(tmp_path / "run"), progress=False).folder
    [(images, reference)] = draw_student_and_teacher(f"{run}@1", ["a red circle"], images_per_prompt=2)
    assert (images, reference) == (run / "evaluation" / "step-000001", run / "evaluation" / "teacher")
    first, second = (read_json(folder / "manifest.json")["images"] for folder in (images, reference))
    assert [(i["prompt"], i["seed"]) for i in first] == [(i["prompt"], i["seed"]) for i in second]
    sampling = read_json(reference / "sampling.json")
    assert (sampling["num_inference_steps"], sampling["guidance_scale"]) == (4, 3.5)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    arguments = ["evaluate", f"{run}@1", "--prompts", tmp_path / "prompts.txt", "--images-per-prompt", 2]
    monkeypatch.setattr("sys.argv", ["dpdmd", *map(str, arguments), "--out", str(tmp_path / "metrics.json")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    assert read_json(tmp_path / "metrics.json")
