"""Append rows to `metrics.jsonl` and validation/scores.jsonl during a run."""

from pathlib import Path

from dpdmd.store.jsonl import Row, append_row


def log_row(path: Path, row: Row) -> None:
    """Append a row and flush it (`store.jsonl.append_row`). Raises OSError that says how to continue."""
    try:
        append_row(path, row)
    except OSError as error:
        raise OSError(f"{error}. The last checkpoint stays; make room, then go on with --resume") from error
