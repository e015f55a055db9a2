"""Tables as CSV, in files and as downloads that are part of a page."""

import base64
import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from dpdmd.report.runs import encodable
from dpdmd.store.files import write_text

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # how a cell begins that a spreadsheet evaluates


@dataclass(frozen=True)
class Download:
    """A file that is part of the page: its name, and its content as a data URL."""

    name: str
    href: str


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a CSV file, see `csv_text`."""
    write_text(path, encodable(csv_text(rows)))


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV; their keys are its columns, and what a row lacks stays empty.

    A text that a spreadsheet would take for a formula begins with an apostrophe, which it shows as text.
    """
    text = StringIO()
    rows = [{_defused(key): _defused(value) for key, value in row.items()} for row in rows]
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def download(name: str, rows: list[dict[str, Any]]) -> Download:
    """Rows as a CSV file that is part of the page."""
    content = base64.b64encode(encodable(csv_text(rows)).encode("utf-8")).decode("ascii")
    return Download(f"{name}.csv", f"data:text/csv;charset=utf-8;base64,{content}")


def _defused(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # a carriage return alone would end the row
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text
