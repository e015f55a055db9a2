"""Tables as CSV files."""

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from dpdmd.report.runs import encodable
from dpdmd.store.files import write_text

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # how a cell begins that a spreadsheet evaluates


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a CSV file (UTF-8); their keys are its columns, and what a row lacks stays empty.

    A text that a spreadsheet would take for a formula begins with an apostrophe, which it shows as text.
    """
    text = StringIO()
    rows = [{_defused(key): _defused(value) for key, value in row.items()} for row in rows]
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, encodable(text.getvalue()))


def _defused(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # a carriage return alone would end the row
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text
