"""Generated files of ours and of a user: prompts, manifests, metrics, logs, state."""

import json
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpdmd.data.prompts import read_prompts
from dpdmd.evaluate.manifest import ImageEntry, ManifestFile, read_manifest, write_manifest
from dpdmd.evaluate.metrics import METRICS
from dpdmd.evaluate.metrics_file import MetricsFile
from dpdmd.models.student_file import BestFile, CheckpointFile, StudentFile
from dpdmd.report.runs import read_arm
from dpdmd.store.digests import HASHES_FILE, file_digests, sha256_of
from dpdmd.store.jsonl import append_row, cut_after, read_rows
from dpdmd.store.state import read_state, state_or_none
from dpdmd.training.run.folder import FailureFile, ProvenanceFile

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40)
NO_PROMPT = ("#", "\ufeff", "[", "{")  # beginnings of comments, and of what may be JSON
PROMPTS = st.lists(
    WORDS.map(str.strip).filter(lambda text: text and not text.startswith(NO_PROMPT)), min_size=1, max_size=8
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
SCHEMAS = [StudentFile, BestFile, CheckpointFile, ManifestFile, MetricsFile, ProvenanceFile, FailureFile]


def other_than(*kinds: type) -> st.SearchStrategy:
    """JSON values of none of these types; a whole number is no float here."""
    return JSON.filter(lambda value: type(value) not in kinds)


@given(prompts=PROMPTS, mark=st.booleans(), ends=st.sampled_from(["\n", "\n\n", "\r\n"]))
def test_prompts_come_back_from_text(tmp_path, prompts, mark, ends):
    text = "# a comment\n" + "".join(prompt + ends for prompt in prompts)
    (tmp_path / "p.txt").write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    assert read_prompts(tmp_path / "p.txt") == prompts


@given(prompts=PROMPTS, more=JSON, ascii_only=st.booleans())
def test_prompts_come_back_from_json_lines(tmp_path, prompts, more, ascii_only):
    rows = [json.dumps({"prompt": prompt, "more": more}, ensure_ascii=ascii_only) for prompt in prompts]
    (tmp_path / "p.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert read_prompts(tmp_path / "p.jsonl") == prompts


@given(prompts=PROMPTS, data=st.data(), wrong=other_than(str))
def test_a_damaged_line_of_prompts_is_named(tmp_path, prompts, data, wrong):
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    place = data.draw(st.integers(0, len(rows) - 1), "line")
    texts = [json.dumps({"prompt": wrong}), json.dumps({"text": "a"}), rows[place][:-1], json.dumps([wrong]), "\0"]
    rows[place] = data.draw(st.sampled_from(texts), "damaged")
    (tmp_path / "p.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert f"p.jsonl, line {place + 1}" in str(caught.value)


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".tsv"]))
def test_prompts_of_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"p{suffix}"
    path.write_bytes(content)
    try:
        prompts = read_prompts(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert prompts and all(isinstance(prompt, str) and prompt.strip() for prompt in prompts)


KEYS = st.lists(st.tuples(WORDS, st.integers(0, 2**64 - 1)), min_size=1, max_size=5, unique=True)
ENTRIES = KEYS.map(lambda keys: [ImageEntry(*key, f"{number}.png") for number, key in enumerate(keys)])
INFO = st.dictionaries(WORDS.filter(lambda key: key != "images"), JSON, max_size=4)


def written(folder, entries, info):
    for entry in entries:
        (folder / entry.file).touch()
    return write_manifest(folder, entries, info)


@given(entries=ENTRIES, info=INFO)
def test_a_manifest_comes_back_equal(tmp_path, entries, info):
    expected = written(tmp_path, entries, info)
    assert read_manifest(tmp_path) == expected and expected.images == entries and expected.info == info


@given(entries=ENTRIES, data=st.data())
def test_a_damaged_manifest_is_named_with_its_part(tmp_path, entries, data):
    written(tmp_path, entries, {})
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    place = data.draw(st.integers(0, len(entries) - 1), "image")
    field = data.draw(st.sampled_from(["prompt", "seed", "file"]), "field")
    damage = data.draw(st.sampled_from(["type", "missing", "outside", "absent"]), "damage")
    if damage == "type":
        content["images"][place][field] = data.draw(other_than(int if field == "seed" else str), "value")
        part = f"images.{place}.{field}"
    elif damage == "missing":
        del content["images"][place][field]
        part = f"images.{place}.{field} is missing"
    else:
        content["images"][place]["file"] = "../x.png" if damage == "outside" else "nowhere.png"
        part = content["images"][place]["file"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and part in str(caught.value)


@given(content=JSON)
def test_any_json_in_place_of_our_files_is_read_or_refused_by_name(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    for schema in SCHEMAS:
        try:
            read_state(path, schema)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            assert state_or_none(path, schema) is None


@given(content=st.binary(max_size=300) | st.text(string.printable, max_size=300).map(str.encode))
def test_any_bytes_in_place_of_our_files_are_refused_by_name_and_a_memo_is_made_again(tmp_path, content):
    path = tmp_path / HASHES_FILE
    path.write_bytes(content)
    for schema in SCHEMAS:
        try:
            read_state(path, schema)
        except ValueError as error:
            assert str(error).startswith(str(path))
    (tmp_path / "weights").write_bytes(content)
    assert file_digests([tmp_path / "weights"], tmp_path) == [sha256_of(tmp_path / "weights")]


ROWS = st.lists(
    st.dictionaries(st.sampled_from(["loss/dmd", "grad_norm/student", "validation/quality"]), NUMBERS | st.none()),
    min_size=1, max_size=6,
)  # fmt: skip


@given(rows=ROWS, cut=st.integers(0, 8), torn=st.integers(0, 30))
def test_a_log_comes_back_equal_also_when_its_end_is_torn(tmp_path, rows, cut, torn):
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    rows = [{"step": step, **row} for step, row in enumerate(rows, start=1)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    path.write_bytes(path.read_bytes() + b'{"step": 99, "loss/dmd": 0.123456789'[: max(torn, 1)])
    assert read_rows(path) == rows
    cut_after(path, cut)
    assert read_rows(path) == rows[:cut]


@given(rows=ROWS, data=st.data())
def test_a_damaged_line_of_a_log_is_named_and_costs_no_other(tmp_path, rows, data):
    rows = [{"step": step, **row} for step, row in enumerate(rows, start=1)]
    lines = [json.dumps(row) for row in rows]
    place = data.draw(st.integers(0, len(lines) - 1), "line")
    damages = [
        lines[place][:-1],
        "[]",
        '{"loss/dmd": 1}',
        '{"step": -1}',
        '{"step": 1, "loss/dmd": "x"}',
        "\0\0",
        "NaN",
    ]
    lines[place] = data.draw(st.sampled_from(damages), "damaged")
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_rows(path)
    assert f"{path}, line {place + 1}" in str(caught.value)
    cut_after(path, len(rows))
    assert read_rows(path) == rows[:place] + rows[place + 1 :]


SCORES = st.dictionaries(
    st.sampled_from([metric.key for metric in METRICS]), NUMBERS | st.none(), min_size=1, max_size=6
)


@given(scores=SCORES, data=st.data())
def test_metrics_come_back_equal_and_damaged_ones_are_named(tmp_path, scores, data):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(scores), encoding="utf-8")
    assert read_arm(tmp_path, "a").metrics == scores
    key = data.draw(st.sampled_from(sorted(scores)), "key")
    wrong = data.draw(other_than(int, float, type(None)), "value")
    path.write_text(json.dumps(scores | {key: wrong}), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_arm(tmp_path, "a")
    assert str(path) in str(caught.value) and f"{key} should be a number" in str(caught.value)


@settings(max_examples=max(4, settings().max_examples // 6))
@given(entries=ENTRIES, data=st.data())
def test_the_command_line_ends_with_code_2_for_damaged_images(tmp_path, dpdmd, entries, data):
    written(tmp_path, entries, {})
    path = tmp_path / "manifest.json"
    content = path.read_text(encoding="utf-8")
    end = data.draw(st.integers(0, len(content) - 2), "end")
    assume(not content[end:].isspace())
    path.write_text(content[:end], encoding="utf-8")
    code, _, err = dpdmd("evaluate", tmp_path, "--out", tmp_path / "m.json")
    assert code == 2 and str(path) in err and "Traceback" not in err and not (tmp_path / "m.json").exists()
    path.write_text(content, encoding="utf-8")
    code, _, err = dpdmd("evaluate", tmp_path, "--out", tmp_path / "m.json")  # its files are no images
    assert code == 2 and "png" in err and "Traceback" not in err


@settings(max_examples=max(4, settings().max_examples // 6))
@given(scores=SCORES, data=st.data())
def test_the_command_line_ends_with_code_2_for_damaged_metrics_and_logs(tmp_path, dpdmd, scores, data):
    run, page = tmp_path / "run", tmp_path / "report.html"
    run.mkdir(exist_ok=True)
    page.unlink(missing_ok=True)
    whole = {"metrics.json": json.dumps(scores), "metrics.jsonl": json.dumps({"step": 1, "loss/dmd": 0.5}) + "\n"}
    for name, content in whole.items():
        (run / name).write_text(content, encoding="utf-8")
    code, _, err = dpdmd("report", run, "--out", page)
    assert code == 0 and page.is_file(), err
    name = data.draw(st.sampled_from(sorted(whole)), "file")
    end = data.draw(st.integers(1, len(whole[name].rstrip()) - 1), "end")
    (run / name).write_text(whole[name][:end] + ("\n" if name == "metrics.jsonl" else ""), encoding="utf-8")
    page.unlink()
    code, _, err = dpdmd("report", run, "--out", page)
    assert code == 2 and str(run / name) in err and "Traceback" not in err and not page.exists()
