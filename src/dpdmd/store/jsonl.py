"""Files with one JSON object per line: appended line by line, and readable if a killed process cut off the last one."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpdmd.store.files import write_text

Row = dict[str, Any]


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
    file and line for any other line that is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    whole, _, last = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    text = f"{whole}\n{last}" if _is_json(last) else whole
    rows = []
    for number, row in parse_rows(text, path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object")
        rows.append(row)
    return rows


def cut_after(path: str | Path, step: int) -> int:
    """Drop all rows whose "step" is greater than `step`, and everything from the first broken line on.

    Returns the last step that the file had; 0 for an empty or missing file.
    """
    path = Path(path)
    if not path.exists():
        return 0
    kept, last = [], 0
    for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").split("\n")):
        if not _is_json(line):
            break
        last = json.loads(line)["step"]
        if last <= step:
            kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))
    return last


def parse_rows(text: str, source: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of `text` that is not blank.

    Raises ValueError naming `source` and line for one that is not valid JSON.
    """
    # Not splitlines(): it also splits at characters such as U+2028 that may stand inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{source}, line {number} is not valid JSON ({error})") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
