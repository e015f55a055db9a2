"""Tables as CSV files."""

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from dpdmd.report.runs import encodable
from dpdmd.store.files import write_text


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a CSV file (UTF-8); their keys are its columns, and what a row lacks stays empty."""
    text = StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, encodable(text.getvalue()))
