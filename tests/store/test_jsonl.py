"""Line files: every line that was finished is read, whatever killed the writer."""

import json
import math

import pytest

from dpdmd.store.jsonl import append_row, cut_after, read_rows

ROWS = [{"step": i, "loss": i / 3, "text": "a\u2028b – größer", "alarms": {}} for i in range(1, 6)]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    for row in ROWS:
        append_row(path, row)
    return path


def test_rows_are_read_back_in_order_with_every_digit(log, tmp_path):
    assert read_rows(log) == ROWS and len(log.read_text().split("\n")) == len(ROWS) + 1
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_log_cut_off_at_any_byte_gives_the_lines_that_are_whole(log):
    data = log.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data)):
        log.write_bytes(data[:size])
        whole = sum(end - 1 <= size for end in ends)  # a line that only lacks its end is whole
        assert read_rows(log) == ROWS[:whole], size


def test_numbers_that_json_has_not_become_null_at_any_depth(tmp_path):
    append_row(tmp_path / "a", {"a": math.nan, "b": {"c": [math.inf, 1.0]}, "d": True, "e": 10**400})
    (line,) = (tmp_path / "a").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"a": None, "b": {"c": [None, 1.0]}, "d": True, "e": 10**400}


def test_what_comes_after_a_step_is_dropped_and_the_rest_kept_to_the_byte(log):
    before = log.read_bytes().splitlines(keepends=True)
    with log.open("a") as file:
        file.write('{"step": 6, "lo')
    assert cut_after(log, 3) == 5
    assert log.read_bytes() == b"".join(before[:3])
    append_row(log, ROWS[3])
    assert log.read_bytes() == b"".join(before[:4])
    assert cut_after(log, 0) == 4 and read_rows(log) == [] and cut_after(log, 0) == 0
    assert cut_after(log.with_name("none"), 3) == 0 and not log.with_name("none").exists()


@pytest.mark.parametrize(
    ("line", "reason"), [('{"step": 1, "lo', "is not valid JSON"), ("[1]", ": it should be a JSON object, got \\[1\\]")]
)
def test_a_broken_line_before_the_last_is_named(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2 ?{reason}"):
        read_rows(tmp_path / "a.jsonl")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"could not write .*nowhere"):
        append_row(tmp_path / "nowhere" / "a.jsonl", {})
