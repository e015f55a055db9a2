"""`metrics.jsonl` and validation/scores.jsonl: a line for each update, appended and flushed at once."""

import json
import math
from pathlib import Path
from typing import Any

from dpdmd.store.files import write_text


class MetricsLog:
    """`metrics.jsonl`, one line per student update, or validation/scores.jsonl: appended and flushed at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; NaN and infinity, which JSON does not have, become null. Raises OSError when it cannot."""
        clean = {key: value if _is_json(value) else None for key, value in row.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise OSError(
                f"could not write {self.path}: {error.strerror}. The last checkpoint stays; make room, then go on with "
                "--resume"
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """All lines, of a file that is whole; [] when there is none."""
        return list(map(json.loads, self.path.read_text(encoding="utf-8").splitlines())) if self.path.exists() else []

    def cut_after(self, step: int) -> int:
        """Drop every line past `step`, and a last one that a killed run left unfinished.

        Returns the last step that the file had, 0 without any.
        """
        if not self.path.exists():
            return 0
        kept, last = [], 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            last = row["step"]
            if last <= step:
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        return last


def _is_json(value: Any) -> bool:
    return not isinstance(value, int | float) or math.isfinite(value)
