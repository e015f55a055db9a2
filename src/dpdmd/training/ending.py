"""What a training ends with in a terminal: what it made, how long it took, how good it is, and how to go on."""

import shlex
from pathlib import Path
from typing import Any

from dpdmd.evaluate.words import duration, joined, percent
from dpdmd.models.student_file import StudentFile
from dpdmd.store.files import read_text
from dpdmd.store.jsonl import read_rows
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.validation.best import read_best


def ending(run: RunFolder) -> str:
    """Lines about a finished run."""
    student, log = StudentFile.read(run.student), read_rows(run.metrics)
    seconds = log[-1].get("seconds") if log else None
    took = f" in {duration(seconds)}" if seconds is not None else ""
    lines = [f"made: {run.student}, a student of {len(student.grid) - 1} steps, by {len(log):,} updates{took}"]
    lines += [_best(run, entry) for entry in read_best(run.best)[:1]] or _last_validation(run)
    return "\n".join([*lines, "go on with:", *(f"  {line}" for line in next_commands(run))])


def next_commands(run: RunFolder) -> list[str]:
    """The command lines that draw with the student, show the run and export its student."""
    folder = run.root
    prompt = ("--prompt", _prompt(run), "--images-per-prompt", "9")
    lines = [
        ("sample", folder, *prompt, "--out", folder / "samples"),
        ("report", folder, "--out", folder / "report.html"),
        ("export", folder, "--out", folder.with_name(f"{folder.resolve().name}_export")),
    ]
    return [shlex.join(["dpdmd", *map(str, line)]) for line in lines]


def _prompt(run: RunFolder) -> str:
    """One that validation draws, so that teacher and student can be seen side by side in its pictures."""
    listed = run.validation / "prompts.txt"
    lines = read_text(listed).splitlines() if Path(listed).is_file() else []
    return lines[0] if lines else "a prompt of yours"


def _best(run: RunFolder, entry: dict[str, Any]) -> str:
    return f"best in validation: {run.best / entry['folder']}, of update {entry['step']}: {entry['why']}"


def _last_validation(run: RunFolder) -> list[str]:
    rows = read_rows(run.scores)
    names = {"diversity_share": "{} of the teacher's diversity", "quality": "quality {}"}
    found = [(text, rows[-1].get(f"validation/{key}")) for key, text in names.items()] if rows else []
    parts = [text.format(percent(value)) for text, value in found if value is not None]
    return [f"last validation: {joined(parts)}"] if parts else []
