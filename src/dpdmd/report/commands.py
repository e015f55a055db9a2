"""The command lines that made a run, and those to go on with: each can be pasted into a terminal."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.report.runs import ArmReport


@dataclass(frozen=True)
class Command:
    """A command line and what it does."""

    what: str
    line: str


def commands(arms: dict[str, ArmReport], sources: list[Path]) -> list[Command]:
    """What trained each student, makes this page again, and samples, scores and exports the students.

    sources: the folders that the page was made from.
    """
    found = [Command(f"Train {arm.label}", line) for arm in arms.values() for line in _training(arm)]
    if sources:
        found.append(Command("Make this page again", _line("report", *sources, "--out", "report.html")))
    for arm in arms.values():
        if arm.status is not None and arm.folder is not None:
            prompt = ("--prompt", "TEXT", "--out", "images")
            found.append(Command(f"Draw with {arm.label}", _line("sample", arm.folder, *prompt)))
            out = f"{arm.folder.name}_student"
            found.append(Command(f"Export {arm.label} for diffusers", _line("export", arm.folder, "--out", out)))
    return found


def score_command(arm: ArmReport, teacher: ArmReport | None) -> str | None:
    """What scores an arm; None where its folder is not known."""
    if arm.folder is None:
        return None
    if arm.status is not None:
        return _line("evaluate", arm.folder)
    if arm.samples is None:
        return None
    reference = ("--reference", teacher.samples) if teacher and teacher.samples else ()
    return _line("evaluate", arm.samples, *reference, "--out", arm.folder / "metrics.json")


def _training(arm: ArmReport) -> list[str]:
    """The command lines of a run's sessions, the first one first; an older run has its recipe."""
    if arm.status is None or arm.folder is None:
        return []
    lines = [line for session in arm.sessions if (line := _of_session(session))]
    return list(dict.fromkeys(lines)) or [_line("train", arm.folder / "recipe.toml")]


def _of_session(session: dict[str, Any]) -> str | None:
    """`dpdmd train ...` of a session that was started from the command line."""
    command = session.get("command")
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command) or len(command) < 2:
        return None
    program = Path(command[0])
    is_ours = program.name == "dpdmd" or program.parts[-2:] == ("dpdmd", "__main__.py")
    return _line(*command[1:]) if is_ours else None


def _line(*parts: str | Path) -> str:
    return shlex.join(["dpdmd", *map(str, parts)])
