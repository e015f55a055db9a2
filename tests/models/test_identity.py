"""A model is identified by its content: it is the same in any place, and another with any other weight."""

import shutil
from pathlib import Path

import pytest

from dpdmd.models.identity import lora_identity, model_identity
from dpdmd.models.load import built_in_teacher
from dpdmd.models.student_file import LORA_FILE, WEIGHTS_FILE, StudentFile
from dpdmd.store.files import read_json, write_json

GRID = (1.0, 0.5, 0.0)


@pytest.fixture
def pipeline(tmp_path) -> Path:
    folder = tmp_path / "pipeline"
    for part in ("text_encoder", "transformer", "vae", "scheduler"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(part)
    parts = {part: ["diffusers", "X"] for part in ("text_encoder", "transformer", "vae", "scheduler")}
    write_json(folder / "model_index.json", parts | {"_class_name": "XPipeline", "_diffusers_version": "1"})
    return folder


def changed(folder: Path, name: str) -> str:
    """The identity with another content of that file, which is put back."""
    path = folder / name
    before = path.read_bytes() if path.exists() else None
    path.write_text("something else")
    found = model_identity(str(folder))
    path.unlink() if before is None else path.write_bytes(before)
    return found


def test_a_pipeline_follows_the_files_of_its_parts_and_the_settings_of_its_index(pipeline, tmp_path):
    before = model_identity(str(pipeline))
    others = [changed(pipeline, f"{part}/config.json") for part in ("text_encoder", "transformer", "vae", "scheduler")]
    others.append(changed(pipeline, "transformer/new.safetensors"))
    assert len({before, *others}) == 6
    assert changed(pipeline, "README.md") == before
    index = read_json(pipeline / "model_index.json")
    write_json(pipeline / "model_index.json", index | {"_diffusers_version": "2"})
    assert model_identity(str(pipeline)) == before
    write_json(pipeline / "model_index.json", index | {"force_zeros_for_empty_prompt": True})
    assert model_identity(str(pipeline)) != before
    write_json(pipeline / "model_index.json", index)
    assert model_identity(str(pipeline.rename(tmp_path / "moved"))) == before


def test_parts_can_be_left_out(pipeline):
    before = model_identity(str(pipeline), without=("vae", "scheduler"))
    (pipeline / "vae" / "config.json").write_text("changed")
    assert model_identity(str(pipeline), without=("vae", "scheduler")) == before
    (pipeline / "text_encoder" / "config.json").write_text("changed")
    assert model_identity(str(pipeline), without=("vae", "scheduler")) != before


def test_a_built_in_teacher_is_its_folder():
    assert model_identity("scenes") == model_identity(str(built_in_teacher())) != model_identity("scenes_eps")


@pytest.mark.parametrize("weights", [WEIGHTS_FILE, LORA_FILE])
def test_a_student_follows_its_weights_its_base_and_how_it_is_sampled(pipeline, tmp_path, weights):
    run = tmp_path / "run"
    info = StudentFile(base=str(pipeline), grid=GRID)
    info.write(run / "student")
    (run / "student" / weights).write_text("weights")
    before = model_identity(str(run))
    assert before == model_identity(str(run / "student"))
    found = {before, model_identity(str(pipeline))}
    for change in ({"grid": (1.0, 0.0)}, {"kind": "renoise"}, {"height": 64}, {"embedded_guidance": 2.0}):
        info.model_copy(update=change).write(run / "student")
        found.add(model_identity(str(run)))
    assert len(found) == 6
    info.model_copy(update={"seconds": 3.0, "updates": 5}).write(run / "student")
    assert model_identity(str(run)) == before
    (run / "student" / weights).write_text("other weights")
    assert model_identity(str(run)) not in found
    (run / "student" / weights).write_text("weights")
    moved = shutil.move(pipeline, tmp_path / "moved")
    info.model_copy(update={"base": str(moved)}).write(run / "student")
    assert model_identity(str(run)) == before
    (moved / "text_encoder" / "config.json").write_text("changed")
    assert model_identity(str(run)) != before


def test_an_export_is_not_the_teacher_that_lies_in_the_same_files(pipeline):
    teacher = model_identity(str(pipeline))
    StudentFile(base="some/base", grid=GRID).write(pipeline)
    assert model_identity(str(pipeline)) != teacher


def test_a_lora_is_identified_by_its_content_and_its_base(pipeline, tmp_path):
    lora = tmp_path / "lora.safetensors"
    lora.write_text("lora")
    before = lora_identity(str(lora), str(pipeline))
    assert lora_identity(str(lora.rename(tmp_path / "renamed.safetensors")), str(pipeline)) == before
    (tmp_path / "renamed.safetensors").write_text("other lora")
    other = lora_identity(str(tmp_path / "renamed.safetensors"), str(pipeline))
    (pipeline / "vae" / "config.json").write_text("changed")
    assert len({before, other, lora_identity(str(tmp_path / "renamed.safetensors"), str(pipeline))}) == 3


def test_files_are_remembered_in_the_folder_given_and_without_a_home_in_none(pipeline, tmp_path, monkeypatch):
    before = model_identity(str(pipeline), memo=tmp_path / "memo")
    assert len(read_json(tmp_path / "memo" / "hashes.json")) == 4

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DPDMD_CACHE")
    assert model_identity(str(pipeline)) == before
