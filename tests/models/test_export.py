"""What an export holds, and that stock diffusers draws from it what its run draws."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from huggingface_hub import ModelCard, split_torch_state_dict_into_shards
from snippets import drawn_by_card, pixels

from dpdmd.evaluate.generate import generate_folder
from dpdmd.models.load import load_sampler
from dpdmd.publish.export import export_run
from dpdmd.store.files import write_json
from dpdmd.store.png import read_png, write_png
from dpdmd.store.tensors import read_tensors
from dpdmd.training.validation.picture import picture

FOLDERS = ("teacher_samples", "samples")  # of a run's images


def test_the_cards_snippet_in_stock_diffusers_reproduces_our_sample(run, sd3_folder, tmp_path):
    out = export_run(run, tmp_path / "export")
    generate_folder(str(run), ["a red circle"], out=tmp_path / "ours", seeds=[0], progress=False)
    assert np.abs(drawn_by_card(out, sd3_folder) - pixels(tmp_path / "ours")[0]).max() <= 1


def test_the_card_states_what_is_known_of_the_run(run, sd3_folder, tmp_path):
    first = export_run(run, tmp_path / "first")
    assert "has not been evaluated yet" in (first / "README.md").read_text()
    assert ModelCard.load(first / "README.md").data.license == "unknown"

    metrics = {"num_prompts": 2, "images_per_prompt": 3, "diversity": 0.25, "intervals": {"diversity": [0.125, 0.5]}}
    write_json(run / "metrics.json", metrics | {"provenance": {"features": "scenes"}})
    write_json(tmp_path / "m.json", metrics | {"diversity": 0.375, "provenance": {"features": "scenes"}})
    (run / "recipe.toml").write_text("[train]\nnum_updates = 1\n")
    second = export_run(run, tmp_path / "second", license="mit", repo_id="me/student")
    card = (second / "README.md").read_text()
    assert "| diversity | 0.250 | 0.125 to 0.500 |" in card and "not been evaluated" not in card
    assert "t = 1, 0.9, 0.75, 0.5, 0 " in card and "DP-DMD" in card and f"`{Path(sd3_folder).name}`" in card
    assert (
        "```toml\n[train]\nnum_updates = 1\n```" in card
        and "from_pretrained('me/student', dtype=torch.float32)" in card
    )
    assert ModelCard.load(second / "README.md").data.license == "mit"

    third = export_run(run, tmp_path / "third", metrics=tmp_path / "m.json")
    assert "| diversity | 0.375 | 0.125 to 0.500 |" in (third / "README.md").read_text()
    with pytest.raises(ValueError, match="was not written by `dpdmd evaluate`"):
        export_run(run, tmp_path / "fourth", metrics=run / "student" / "student.json")
    assert not (tmp_path / "fourth").exists()


def test_an_export_samples_like_its_run(run, tmp_path):
    out = export_run(run, tmp_path / "export")
    for name, model in (("a", run), ("b", out)):
        generate_folder(str(model), ["one cross"], out=tmp_path / name, seeds=[5], progress=False)
    assert np.abs(pixels(tmp_path / "a") - pixels(tmp_path / "b")).max() <= 1


def test_the_best_student_of_a_run_samples_and_exports_as_a_run_does(run, tmp_path):
    (run / "recipe.toml").write_text("# its recipe")
    generate_folder(str(run), ["one cross"], out=tmp_path / "run_images", seeds=[5], progress=False)
    (run / "students/best").mkdir(parents=True)
    shutil.move(run / "student", run / "students/best/step-000001")
    write_json(run / "students/best/best.json", {"students": [{"folder": "step-000001"}, {"folder": "step-000002"}]})
    best = run / "students/best"
    out = export_run(best, tmp_path / "export")
    for name, model in (("best_images", best), ("export_images", out)):
        generate_folder(str(model), ["one cross"], out=tmp_path / name, seeds=[5], progress=False)
        assert np.abs(pixels(tmp_path / "run_images") - pixels(tmp_path / name)).max() <= 1
    assert "# its recipe" in (out / "README.md").read_text()


def test_an_export_has_copies_of_the_bases_files_or_links_on_request(run, sd3_folder, tmp_path):
    part = "vae/diffusion_pytorch_model.safetensors"
    copied, linked = export_run(run, tmp_path / "copied"), export_run(run, tmp_path / "linked", link=True)
    assert (linked / part).samefile(f"{sd3_folder}/{part}")
    assert not (copied / part).samefile(f"{sd3_folder}/{part}")
    assert (copied / part).read_bytes() == (linked / part).read_bytes()
    own = "transformer/diffusion_pytorch_model.safetensors"
    assert (linked / own).read_bytes() != (tmp_path / sd3_folder / own).read_bytes()


def test_the_files_of_an_export_can_be_read_by_others(run, sd3_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(sd3_folder, base)
    for path in base.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    info = json.loads((run / "student/student.json").read_text())
    write_json(run / "student/student.json", info | {"base": str(base)})
    old = os.umask(0o022)
    try:
        out = export_run(run, tmp_path / "export")
    finally:
        os.umask(old)
    modes = {path.relative_to(out): path.stat().st_mode & 0o777 for path in out.rglob("*")}
    assert {mode for path, mode in modes.items() if (out / path).is_dir()} == {0o755}
    assert {mode for path, mode in modes.items() if (out / path).is_file()} == {0o644}


@pytest.mark.parametrize(("stored", "asked", "expected"), [
    ("bf16", None, torch.bfloat16), ("bf16", "fp32", torch.float32), ("fp32", "fp16", torch.float16),
    ("fp16", None, torch.float16),
])  # fmt: skip
def test_an_export_is_stored_as_its_base_is_unless_asked_otherwise(stored, asked, expected, run, sd3_folder, tmp_path):
    base = tmp_path / "base"
    pipeline = DiffusionPipeline.from_pretrained(
        sd3_folder, dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[stored]
    )
    pipeline.save_pretrained(base)
    info = json.loads((run / "student/student.json").read_text())
    write_json(run / "student/student.json", info | {"base": str(base)})
    out = export_run(run, tmp_path / "export", dtype=asked)
    weights = read_tensors(out / "transformer/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {expected}
    assert f"dtype={expected}" in (out / "README.md").read_text()
    trained = read_tensors(run / "student/student.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, trained[name].to(expected)), name
    drawn_in = torch.float32 if expected == torch.float16 else expected  # this is a CPU
    assert load_sampler(str(out)).network.dtype == drawn_in


def test_a_network_of_up_to_20_gb_is_one_file_where_asked(run, tmp_path, monkeypatch):
    real = SD3Transformer2DModel.save_pretrained
    sizes = []
    monkeypatch.setattr(
        SD3Transformer2DModel, "save_pretrained", lambda self, *a, **k: sizes.append(k) or real(self, *a, **k)
    )
    for one_file in (False, True):
        export_run(run, tmp_path / str(one_file), one_file=one_file)
    assert sizes == [{}, {"max_shard_size": "20GB"}]
    for gigabytes, number in ((19.9, 1), (20.1, 2)):
        halves = {name: torch.empty(int(gigabytes * 1e9 / 8), device="meta") for name in "ab"}
        split = split_torch_state_dict_into_shards(halves, max_shard_size=sizes[1]["max_shard_size"])
        assert len(split.filename_to_tensors) == number


def test_a_failed_export_leaves_no_files(run, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dpdmd.publish.export.write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        export_run(run, tmp_path / "out" / "export")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_card_shows_teacher_and_student(run, sd3_folder, tmp_path):
    """The images of a run's own folders, else the picture of validation after the student's last update."""
    assert not (export_run(run, tmp_path / "none") / "images.png").exists()
    (run / "validation").mkdir()
    for step in (1, 2):  # the student has had one update
        write_png(run / f"validation/step-{step:06d}.png", torch.full((3, 4, 4), step - 1.0))
    first = export_run(run, tmp_path / "first")
    assert (first / "images.png").read_bytes() == (run / "validation/step-000001.png").read_bytes()
    for name, model in zip(FOLDERS, (sd3_folder, run), strict=True):
        options = {"num_inference_steps": 2} if name == "teacher_samples" else {}
        generate_folder(str(model), ["a ring", "one"], out=run / name, seeds=[0, 1], progress=False, **options)
    second = export_run(run, tmp_path / "second")
    assert "Prompts: `a ring`; `one`." in (second / "README.md").read_text()
    images = [[read_png(run / folder / f"{p:04d}-00000{s}.png") for p in (0, 1) for s in (0, 1)] for folder in FOLDERS]
    shown = picture(torch.stack(images[0]), torch.stack(images[1]), ["a ring", "one"])
    assert torch.equal(read_png(second / "images.png"), shown)


def test_the_workflow_has_a_uniform_grid_by_its_shift_and_any_other_as_it_is(run, tmp_path):
    flow = json.loads((export_run(run, tmp_path / "export") / "comfyui_workflow.json").read_text())
    assert flow["sampling"]["inputs"]["shift"] == 3 and flow["steps"]["inputs"]["steps"] == 4
    info = json.loads((run / "student/student.json").read_text())
    write_json(run / "student/student.json", info | {"grid": [0.98, 0.6, 0.55, 0.0]})
    other = export_run(run, tmp_path / "other")
    flow = json.loads((other / "comfyui_workflow.json").read_text())
    assert flow["steps"]["inputs"] == {"sigmas": "0.98, 0.6, 0.55, 0"} and "sampling" not in flow
    card = (other / "README.md").read_text()
    assert "sigmas=[0.98, 0.6, 0.55]" in card and "- ManualSigmas: 0.98, 0.6, 0.55, 0\n" in card
