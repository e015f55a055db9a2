"""student.json: written and read as one, files of older versions included."""

import hashlib
import json

import pytest
import torch

from dpdmd.models.find import find_student, located, students_of
from dpdmd.models.load import load_sampler
from dpdmd.models.student_file import (
    BEST_FILE,
    LORA_FILE,
    STUDENT_FILE,
    WEIGHTS_FILE,
    StudentFile,
    exported_student,
)
from dpdmd.store.files import read_json, write_json
from dpdmd.store.tensors import read_tensors, write_tensors

GRID = (1.0, 0.75, 0.5, 0.0)
# As the first version that wrote one had it.
OLD = {"base": "scenes", "grid": list(GRID), "num_inference_steps": 3, "objective": "dp_dmd", "updates": 1}


def test_what_is_written_is_read_back(tmp_path):
    written = StudentFile(
        base="some/base", grid=GRID, kind="renoise", embedded_guidance=3.5, height=64, width=32, objective="dmd",
        updates=7, seconds=1.5, peak_memory_bytes=2**33,
    )  # fmt: skip
    written.write(tmp_path)
    assert StudentFile.read(tmp_path) == written
    assert read_json(tmp_path / STUDENT_FILE)["num_inference_steps"] == 3
    assert all(field.description for field in StudentFile.model_fields.values())


def test_a_file_without_the_newer_keys_or_with_unknown_ones_can_be_read(tmp_path):
    write_json(tmp_path / STUDENT_FILE, OLD | {"key of a later version": 1})
    student = StudentFile.read(tmp_path)
    assert (student.base, student.grid, student.updates) == ("scenes", GRID, 1)
    assert (student.kind, student.guidance_scale, student.image_size, student.num_inference_steps) == (
        "ode",
        1,
        None,
        3,
    )
    write_json(tmp_path / STUDENT_FILE, {"base": "scenes", "grid": list(GRID)})
    assert StudentFile.read(tmp_path).objective == "unknown"


@pytest.mark.parametrize("name", [WEIGHTS_FILE, LORA_FILE])
def test_weights_that_have_changed_are_refused_unless_the_file_is_older_than_the_digest(tmp_path, name):
    write_tensors(tmp_path / name, {"w": torch.zeros(4)})
    StudentFile(base="scenes", grid=GRID).write(tmp_path)
    student = StudentFile.read(tmp_path)
    content = (tmp_path / name).read_bytes()
    assert student.weights_sha256 == hashlib.sha256(content).hexdigest()
    student.require_its_weights(tmp_path)
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    read_tensors(tmp_path / name)  # safetensors notices nothing
    with pytest.raises(ValueError, match=f"{name} has changed since it was written: .*copy it again") as error:
        load_sampler(str(tmp_path))
    assert "\n" not in str(error.value)
    write_json(tmp_path / STUDENT_FILE, OLD)
    StudentFile.read(tmp_path).require_its_weights(tmp_path)


def test_the_digest_is_of_the_weights_that_are_there_when_the_file_is_written(tmp_path):
    write_tensors(tmp_path / "student" / WEIGHTS_FILE, {"w": torch.zeros(4)})
    StudentFile(base="scenes", grid=GRID).write(tmp_path / "student")
    student = StudentFile.read(tmp_path / "student")
    student.write(tmp_path / "export")  # a pipeline, which has no such file
    assert student.weights_sha256 is not None and StudentFile.read(tmp_path / "export").weights_sha256 is None


def test_a_side_that_is_not_given_is_the_models_own(tmp_path):
    assert StudentFile(base="scenes", grid=GRID, width=64).image_size == (None, 64)
    assert StudentFile(base="scenes", grid=GRID, height=64).image_size == (64, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{half", "not valid JSON"),
        ("[]", r"it should be a JSON object, got \[\]"),
        (json.dumps({"grid": GRID}), "base is missing"),
        (json.dumps(OLD | {"grid": [1.0, 1.0, 0.0]}), "grid .*descend strictly"),
        (json.dumps(OLD | {"grid": "abc"}), "grid should be a valid tuple, got 'abc'"),
        (json.dumps(OLD | {"kind": "sde"}), "kind should be 'ode', 'renoise' or 'renoise_last', got 'sde'"),
    ],
)
def test_a_broken_file_is_one_clear_error_that_names_it(tmp_path, content, reason):
    (tmp_path / STUDENT_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{STUDENT_FILE}.*{reason}") as caught:
        StudentFile.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_students_are_found_in_runs_among_the_best_and_by_their_own_folder(tmp_path):
    student, kept = tmp_path / "run" / "student", tmp_path / "run" / "students" / "best" / "step-000005"
    for folder, name in ((student, "student.safetensors"), (kept, "pytorch_lora_weights.safetensors")):
        StudentFile(base="scenes", grid=GRID).write(folder)
        (folder / name).touch()
    write_json(kept.parent / BEST_FILE, {"students": [{"folder": kept.name}, {"folder": "step-000001"}]})
    assert find_student(student) == student
    assert find_student(tmp_path / "run") == find_student(kept.parent) == find_student(kept) == kept
    assert find_student(tmp_path) is None


def test_of_a_run_without_a_best_student_the_newest_is_taken_and_any_by_its_step(tmp_path):
    run = tmp_path / "run"
    places = {10: "checkpoints/step-000010", 20: "students/step-000020", 30: "checkpoints/step-000030", 25: "student"}
    for step, place in places.items():
        StudentFile(base="scenes", grid=GRID, updates=step).write(run / place)
        (run / place / "student.safetensors").touch()
    (run / "checkpoints" / ".step-000040.tmp").mkdir()
    assert students_of(run) == {step: run / place for step, place in places.items()}
    assert find_student(run) == run / places[30]
    for step, place in places.items():
        assert located(f"{run}@{step}") == str(run / place)
    with pytest.raises(ValueError, match=r"run has no student of step 15; it has 10, 20, 25, 30"):
        located(f"{run}@15")
    with pytest.raises(ValueError, match=rf"there is no run .*runn; did you mean {run}\?"):
        located(f"{run}n@10")


@pytest.mark.parametrize("content", [{"students": []}, {}, [], {"students": [{}]}])
def test_a_broken_list_of_the_best_students_is_named(tmp_path, content):
    write_json(tmp_path / BEST_FILE, content)
    with pytest.raises(
        ValueError,
        match=r"best\.json(: students(\.0\.folder)? is missing|: it should| lists no student)",
    ):
        find_student(tmp_path)


def test_an_export_has_its_file_but_no_weights_of_a_run(tmp_path):
    StudentFile(base="scenes", grid=GRID).write(tmp_path)
    assert exported_student(tmp_path).grid == GRID and find_student(tmp_path) is None
    assert exported_student("scenes") is None and exported_student("some/hub-id") is None
