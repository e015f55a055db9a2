"""The best students of a run by its validation: which they are, why, and the folder that keeps them.

students/best/best.json       their scores and why each is kept, the best first
students/best/step-000100/    one of them

Only students named in `best.json` count. A student is written before its name is added and removed after its name is,
so that every named student is complete, even if the run is killed in between.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpdmd.distributed.processes import on_main_process
from dpdmd.models.student_file import BEST_FILE, BestPlace
from dpdmd.store.files import remove_folder, write_json
from dpdmd.store.state import Count, State, read_state

Entry = dict[str, Any]


class RankedEntry(BestPlace):
    """One of the best students: its scores, by what they were judged, and why it is kept."""

    step: Count
    quality: float
    diversity_share: float
    judged_by: str
    why: str


class RankedFile(State):
    """best.json."""

    students: list[RankedEntry]


def as_entry(row: dict[str, Any]) -> Entry | None:
    """The entry of a row of validation/scores.jsonl; None if it lacks quality or diversity share."""
    found = {key: row.get(f"validation/{key}") for key in ("quality", "diversity_share")}
    if None in found.values():
        return None
    return {"step": row["step"], **found, "judged_by": row["judged_by"]}


def rank(entries: list[Entry], floor: float) -> list[Entry]:
    """Best first: by quality those that keep `floor` of the teacher's diversity, then the others by diversity share.

    Ties go to the higher share, then to the later student. entries: each with "step", "quality" and "diversity_share".
    """

    def worth(entry: Entry) -> tuple[bool, float, float, int]:
        share, keeps = entry["diversity_share"], entry["diversity_share"] >= floor
        return keeps, entry["quality"] if keeps else share, share, entry["step"]

    return sorted(entries, key=worth, reverse=True)


def why(entry: Entry, place: int, seen: list[Entry], floor: float) -> str:
    """Why the student at `place` (0: the best) is kept; seen: all students that were validated."""
    share, quality = f"{entry['diversity_share']:.2f}", f"{entry['quality']:.2f}"
    keeping = sum(other["diversity_share"] >= floor for other in seen)
    highest = "the highest" if place == 0 else f"number {place + 1}"
    if entry["diversity_share"] >= floor:
        return (
            f"quality {quality}, {highest} of the {keeping} of {len(seen)} validated students that keep at least "
            f"{floor:g} of the teacher's diversity; it keeps {share}"
        )
    return (
        f"it keeps {share} of the teacher's diversity, {highest} of {len(seen)} validated students, "
        f"{keeping or 'none'} of which reached the {floor:g} of checkpoint.diversity_floor; quality {quality}"
    )


def read_best(folder: Path) -> list[Entry]:
    """The entries of best.json, the best first; [] without the file."""
    path = folder / BEST_FILE
    return [entry.model_dump() for entry in read_state(path, RankedFile).students] if path.is_file() else []


def remove_strays(folder: Path) -> None:
    """Remove students that best.json does not name: replaced ones, or ones being written when the run was killed."""
    named = {entry["folder"] for entry in read_best(folder)}
    for path in folder.glob("step-*"):
        if path.name not in named:
            remove_folder(path)


def keep_best(
    folder: Path,
    entry: Entry,
    seen: list[Entry],
    write_student: Callable[[Path], None],
    *,
    number: int,
    floor: float,
) -> bool:
    """Keep the current student if it is among the best `number`; returns whether it is the best.

    entry: from `as_entry`; kept students that were judged by other images or another network are dropped. seen: entries
    of the students validated before. write_student: called in every process, and every process must call this. Raises
    OSError in all of them when the first cannot write.
    """
    entry = entry | {"folder": f"step-{entry['step']:06d}"}
    before = [e for e in on_main_process(lambda: read_best(folder)) if e["judged_by"] == entry["judged_by"]]
    ranked = rank([*(e for e in before if e["step"] != entry["step"]), entry], floor)[:number]
    seen = [e for e in seen if e["judged_by"] == entry["judged_by"]]
    seen = list({e["step"]: e for e in (*before, *seen, entry)}.values())
    if entry in ranked:
        write_student(folder / entry["folder"])

    def settle() -> None:
        named = [e | {"why": why(e, place, seen, floor)} for place, e in enumerate(ranked)]
        write_json(folder / BEST_FILE, {"diversity_floor": floor, "students": named})
        remove_strays(folder)

    on_main_process(settle)
    return ranked[0] is entry
