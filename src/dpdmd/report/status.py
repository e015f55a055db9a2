"""How far a training came: finished, failed, or stopped on the way."""

import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.models.student_file import STUDENT_FILE, STUDENT_FOLDER
from dpdmd.recipe.bounds import WITHOUT_END
from dpdmd.store.files import read_text
from dpdmd.store.state import Count, State, state_or_none


class FailedFile(State):
    """What a page says of failure.json."""

    step: Count
    error: str


@dataclass(frozen=True)
class Status:
    """A training that made `done` of `planned` student updates (None: until its time is up). error: why it failed."""

    done: int
    planned: int | None
    is_finished: bool
    error: str = ""

    def sentence(self, label: str, folder: Path | None) -> str:
        """What a reader must know of a training that is not finished; "" of one that is."""
        if self.is_finished:
            return ""
        of = "" if self.planned is None else f" of {self.planned:,}"
        if self.error:
            return f"{label} failed after {self.done:,}{of} updates: {self.error}."
        go_on = f" To go on: dpdmd train {shlex.quote(str(folder))} --resume" if folder else ""
        return f"{label} has made {self.done:,}{of} updates and is not finished.{go_on}"


def status_of(folder: Path, log: list[dict[str, Any]]) -> Status | None:
    """The status of the run in a folder, from its recipe, its log and whether its student is there; None of no run."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file() or not (folder / "metrics.jsonl").is_file():
        return None
    try:
        planned = tomllib.loads(read_text(recipe))["train"]["num_updates"]
    except (ValueError, KeyError, TypeError, RecursionError):
        planned = None
    planned = planned if isinstance(planned, int) and planned < WITHOUT_END else None
    done = max((int(row["step"]) for row in log), default=0)
    failed = state_or_none(folder / "failure.json", FailedFile)
    has_student = (folder / STUDENT_FOLDER / STUDENT_FILE).is_file()
    is_finished = failed is None and (has_student or (planned is not None and done >= planned))
    return Status(done, planned, is_finished, failed.error if failed else "")
