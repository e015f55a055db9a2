"""Rows of tables as people keep them: JSON lines, JSON lists, and CSV or TSV with a heading."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from dpdmd.store.files import require_ordinary_file
from dpdmd.store.jsonl import parse_rows
from dpdmd.store.names import did_you_mean

JSON_LINES, SEPARATED = (".jsonl", ".ndjson"), {".csv": ",;", ".tsv": "\t"}
TABLES = (*JSON_LINES, *SEPARATED, ".json")
Rows = Iterator[tuple[str, Any]]


def read_utf8(path: str | Path) -> str:
    """The text of a UTF-8 file, without the byte-order mark of some editors. Raises ValueError naming the file."""
    try:
        require_ordinary_file(path)
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}{did_you_mean(path)}") from None
    if "\0" in text:  # as UTF-16 has it, where there is no byte-order mark
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line} has a zero byte in it, so this is no UTF-8 text; save it as UTF-8")
    return text


def table_rows(path: str | Path) -> Rows:
    """(where, row) of each row of a file in TABLES; `where` is for error messages.

    A row is a dict; of a JSON list also a text. Raises ValueError naming the file, and the line where there is one.
    """
    suffix, text = Path(path).suffix.lower(), read_utf8(path)
    if suffix in JSON_LINES:
        return ((f"{path}, line {number}", row) for number, row in parse_rows(text, path))
    return _json_rows(text, path) if suffix == ".json" else _separated_rows(text, path, SEPARATED[suffix])


def _json_rows(text: str, path: str | Path) -> Rows:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, list):
        raise ValueError(
            f"{path} must be a JSON list of texts or objects, got {type(content).__name__}; in .jsonl each line is an "
            "object"
        )
    return ((f"{path}, entry {number}", row) for number, row in enumerate(content, 1))


def _separated_rows(text: str, path: str | Path, separators: str) -> Rows:
    """Rows below a heading. Of two separators it is the one that the heading has more of."""
    heading = text.partition("\n")[0]
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=max(separators, key=heading.count), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} has not as many cells as the heading")
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} cannot be read as a table ({error})") from None
