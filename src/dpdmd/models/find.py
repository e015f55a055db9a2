"""Where students are: in a run, finished or not, in a folder of its own, or in an exported pipeline.

RUN/student/                      the student of a finished run
RUN/students/best/                the best ones in validation; best.json lists them, the best first
RUN/students/step-000050/         a student kept during training
RUN/checkpoints/step-000100/      a checkpoint, whose student can be sampled as well
EXPORT/                           a diffusers pipeline with student.json in it
"""

import re
from pathlib import Path

from dpdmd.models.student_file import BEST_FILE, STUDENT_FILE, STUDENT_FOLDER, BestFile, StudentFile, student_weights
from dpdmd.store.names import did_you_mean, expanded, local_or_hub_id
from dpdmd.store.state import read_state

AT_STEP = re.compile(r"(?P<run>.+)@(?P<step>\d+)")


def located(model: str | Path) -> str:
    """The folder of a student that RUN@STEP names; any other name as `store.names.local_or_hub_id` takes it.

    Raises ValueError for a run without a student of that step, with the steps that it has.
    """
    named = AT_STEP.fullmatch(expanded(model))
    if named is None or Path(expanded(model)).exists():
        return local_or_hub_id(model)
    run, step = Path(named["run"]), int(named["step"])
    if not run.is_dir():
        raise ValueError(f"there is no run {run}{did_you_mean(run)}")
    students = students_of(run)
    if step not in students:
        steps = ", ".join(map(str, sorted(students))) or "none"
        raise ValueError(f"{run} has no student of step {step}; it has {steps}")
    return str(students[step])


def find_student(folder: str | Path) -> Path | None:
    """The folder that holds a student's weights: of a run its best student, else its newest; or `folder` itself.

    A folder students/best stands for the first that its best.json names. Returns None for anything else, an export
    included. Raises ValueError for a broken best.json.
    """
    folder = Path(folder)
    if _holds_student(folder):
        return folder
    best = next((place for place in (folder, folder / "students" / "best") if (place / BEST_FILE).is_file()), None)
    if best is not None:
        return _first(best)
    students = students_of(folder)
    return students[max(students)] if students else None


def students_of(run: Path) -> dict[int, Path]:
    """{student updates done: folder} of all students of a run. Of one step, the most lasting folder is named."""
    found: dict[int, Path] = {}
    for pattern in ("checkpoints/step-*", "students/best/step-*", "students/step-*"):
        for place in run.glob(pattern):
            step = place.name.removeprefix("step-")
            if step.isdigit() and _holds_student(place):
                found[int(step)] = place
    if _holds_student(run / STUDENT_FOLDER):
        found[StudentFile.read(run / STUDENT_FOLDER).updates] = run / STUDENT_FOLDER
    return found


def _holds_student(folder: Path) -> bool:
    return (folder / STUDENT_FILE).is_file() and student_weights(folder) is not None


def _first(best: Path) -> Path:
    """The best student that best.json names."""
    students = read_state(best / BEST_FILE, BestFile).students
    if not students:
        raise ValueError(f"{best / BEST_FILE} lists no student")
    return best / students[0].folder
