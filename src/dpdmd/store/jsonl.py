"""Files with one JSON object per line: appended line by line, and readable if a killed process cut off the last one."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from dpdmd.store.files import read_text, write_text
from dpdmd.store.state import Count, State, checked

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NUMBERS = ("loss/", "grad_norm/", "health/", "sample/", "validation/")


class LogRow(State):
    """A row of metrics.jsonl or validation/scores.jsonl: what was measured after `step` updates, numbers or null."""

    step: Count
    seconds: float | None = None
    once_seconds: float | None = None
    learning_rate: float | None = None
    alarms: dict[str, str] | None = None
    judged_by: str | None = None

    @model_validator(mode="after")
    def _numbers(self):
        for key, value in (self.model_extra or {}).items():
            if key.startswith(NUMBERS) and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                raise ValueError(f"{key} should be a number")
        return self


def append_row(path: str | Path, row: Row) -> None:
    """Add a line and flush it. NaN and infinity, which JSON does not have, become null.

    Raises OSError naming the file when it cannot be written.
    """
    path = Path(path)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror}") from error


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file; [] if there is no such file.

    A last line without its end is left out if it is not valid JSON: its writer was killed. Raises ValueError naming
    file and line for any other line that is not a `LogRow`.
    """
    path = Path(path)
    if not path.exists():
        return []
    whole, _, last = read_text(path, errors="replace").rpartition("\n")
    text = f"{whole}\n{last}" if _row(last) else whole
    rows = list(parse_rows(text, path))
    for number, row in rows:
        checked(row, LogRow, f"{path}, line {number}")
    return [row for _, row in rows]


def cut_after(path: str | Path, step: int) -> int:
    """Drop all rows whose "step" is greater than `step`, and lines that are no `LogRow`, with a warning.

    Returns the last step that the file had; 0 for an empty or missing file.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = [line for line in read_text(path, errors="replace").split("\n") if line.strip()]
    rows = [_row(line) for line in lines]
    broken = [number for number, row in enumerate(rows, start=1) if row is None]
    if broken and broken != [len(lines)]:  # the last one was cut off by the end of its process
        logger.warning("%s: %d lines are no rows of a log and are removed, from %d on", path, len(broken), broken[0])
    kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and row.step <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))
    return max((row.step for row in rows if row is not None), default=0)


def parse_rows(text: str, source: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of `text` that is not blank.

    Raises ValueError naming `source` and line for one that is not valid JSON.
    """
    # Not splitlines(): it also splits at characters such as U+2028 that may stand inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{source}, line {number} is not valid JSON ({error})") from None


def _row(text: str) -> LogRow | None:
    try:
        return LogRow.model_validate(json.loads(text))
    except (ValueError, RecursionError, ValidationError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
