"""Files that dpdmd reads again: checked, and named with the key that is wrong."""

import json
from pathlib import Path

import pytest

from dpdmd.compare.commands import CommandFile, CostFile
from dpdmd.evaluate.drawing import SamplingFile
from dpdmd.evaluate.manifest import ManifestFile
from dpdmd.evaluate.metrics_file import MetricsFile
from dpdmd.models.student_file import BestFile, CheckpointFile, StudentFile
from dpdmd.report.comparison import ComparisonFile
from dpdmd.store.jsonl import LogRow, cut_after, read_rows
from dpdmd.store.state import read_state, state_or_none
from dpdmd.training.run.folder import FailureFile, ProvenanceFile
from dpdmd.training.run.trackers import WandbFile
from dpdmd.training.validation.best import RankedFile, read_best

ENTRY = {"step": 1, "quality": 0.5, "diversity_share": 1, "judged_by": "scenes", "folder": "step-000001", "why": "best"}
COMPARISON = {"arms": {"a": {"vendi": {"mean": 1.0}}}, "setup": {}, "runs": {"a": [{}]}, "paths": {}, "curve": []}
VALID = {
    StudentFile: {"base": "scenes", "grid": [1.0, 0.0], "height": 32},
    BestFile: {"students": [ENTRY]},
    RankedFile: {"students": [ENTRY]},
    CheckpointFile: {"step": 3, "seconds": 1.5, "peak_memory_bytes": 2**40, "sha256": {"a": "0" * 64}},
    ManifestFile: {"images": [{"prompt": "größer", "seed": 2**64 - 1, "file": "a.png"}], "model": "x"},
    SamplingFile: {"prompts": ["a"], "identity": "1"},
    MetricsFile: {"diversity": 1, "vendi": None, "intervals": {"vendi": [0.5, None]}, "num_prompts": 3, "other": "x"},
    ProvenanceFile: {"sessions": [{"commit": None}], "extra_parameters": {"head": 3}},
    FailureFile: {"step": 3, "error": "inf"},
    CommandFile: {"command": ["train"], "seconds": 1, "peak_memory_bytes": 1, "failure": {"step": 1, "error": "inf"}},
    CostFile: {"seconds": 1.0, "peak_memory_bytes": 1},
    ComparisonFile: COMPARISON,
    WandbFile: {"id": "ab12", "last_step": 4},
    LogRow: {"step": 3, "seconds": 1.0, "loss/dmd": None, "validation/quality": 1, "alarms": {"collapse": "a"}},
}
# (schema, path of keys, value that cannot be, what the message says)
WRONG = [
    (StudentFile, ["grid"], [0.0, 1.0], "grid"),
    (StudentFile, ["height"], -1, "height should be greater than or equal to 1, got -1"),
    (StudentFile, ["base"], None, "base should be a valid string, got None"),
    (StudentFile, ["base"], "", "base"),
    (BestFile, ["students", 0, "folder"], "../../elsewhere", "students.0.folder"),
    (BestFile, ["students"], {}, "students should be a valid list"),
    (RankedFile, ["students", 0, "quality"], "high", "students.0.quality should be a valid number, got 'high'"),
    (CheckpointFile, ["step"], -1, "step"),
    (CheckpointFile, ["step"], 1.5, "step should be a valid integer"),
    (CheckpointFile, ["sha256", "a"], "0" * 63, "sha256.a"),
    (ManifestFile, ["images", 0, "seed"], True, "images.0.seed should be a valid integer, got True"),
    (ManifestFile, ["images", 0, "seed"], 2**64, "images.0.seed should be less than"),
    (ManifestFile, ["images", 0, "seed"], 1.0, "images.0.seed should be a valid integer, got 1.0"),
    (ManifestFile, ["images", 0, "file"], "a\0.png", "images.0.file"),
    (ManifestFile, ["images", 0, "file"], ["a.png"], "images.0.file should be a valid string"),
    (SamplingFile, ["prompts"], "a", "prompts should be a valid list"),
    (MetricsFile, ["diversity"], "1", "diversity should be a number"),
    (MetricsFile, ["vendi"], True, "vendi should be a number"),
    (MetricsFile, ["intervals", "vendi"], [1.0], "intervals.vendi"),
    (MetricsFile, ["per_prompt"], {"a": 1}, "per_prompt should be a valid list"),
    (ProvenanceFile, ["sessions"], "x", "sessions should be a valid list"),
    (FailureFile, ["error"], 3, "error should be a valid string"),
    (CommandFile, ["command"], "train", "command should be a valid list"),
    (CommandFile, ["failure", "step"], None, "failure.step"),
    (CostFile, ["seconds"], float("nan"), "seconds should be a finite number"),
    (ComparisonFile, ["runs", "a"], 3, "runs.a should be a valid list"),
    (WandbFile, ["id"], "../x", "id"),
    (LogRow, ["step"], "3", "step should be a valid integer"),
    (LogRow, ["loss/dmd"], "low", "loss/dmd should be a number"),
    (LogRow, ["alarms"], ["collapse"], "alarms should be a valid dictionary"),
]


def damaged(content, keys, value):
    content = json.loads(json.dumps(content))
    *places, last = keys
    place = content
    for key in places:
        place = place[key]
    place[last] = value
    return content


def test_every_schema_is_tested():
    assert {schema for schema, *_ in WRONG} == set(VALID)


@pytest.mark.parametrize("schema", VALID)
def test_what_is_valid_is_read_as_it_was_written(tmp_path, schema):
    path = tmp_path / "state.json"
    path.write_text(json.dumps(VALID[schema]))
    found = read_state(path, schema).model_dump(mode="json", exclude_unset=True)
    assert {key: found[key] for key in VALID[schema]} == VALID[schema]


@pytest.mark.parametrize(("schema", "keys", "value", "message"), WRONG)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path, schema, keys, value, message):
    path = tmp_path / "state.json"
    path.write_text(json.dumps(damaged(VALID[schema], keys, value)))
    with pytest.raises(ValueError) as caught:
        read_state(path, schema)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value) and "\n" not in str(caught.value)
    assert state_or_none(path, schema) is None


@pytest.mark.parametrize("schema", VALID)
@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "{half", "[" * 100_000, '{"a": ' * 20_000, "1" * 5000, "\0" * 9]
)
def test_what_is_no_object_is_named_by_its_file(tmp_path, schema, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_state(path, schema)
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match=f"no such file: {path}s"):
        read_state(f"{path}s", schema)


def test_a_device_or_pipe_or_folder_in_place_of_a_file_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is no ordinary file"):
            read_state(path, FailureFile)


def test_a_log_with_damaged_lines_keeps_every_other_row(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss/dmd": 0.5}) for step in range(1, 6)]
    path.write_text(
        "\n".join([rows[0], "{half", rows[1], '{"step": "3"}', rows[2], rows[3], rows[4], '{"step": 6, "lo'])
    )
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not valid JSON"):
        read_rows(path)
    assert cut_after(path, 4) == 5
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    assert caplog.messages == [f"{path}: 3 lines are no rows of a log and are removed, from 2 on"]


def test_the_best_students_are_read_with_their_scores(tmp_path):
    assert read_best(tmp_path) == []
    (Path(tmp_path) / "best.json").write_text(json.dumps({"students": [ENTRY]}))
    assert read_best(tmp_path) == [ENTRY]
