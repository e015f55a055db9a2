"""Time the students of a comparison against their teacher."""

from functools import partial

from dpdmd.compare.arms import Run
from dpdmd.compare.commands import failure
from dpdmd.evaluate.generate import open_model
from dpdmd.evaluate.manifest import read_manifest
from dpdmd.evaluate.speed import SPEED_FILE, measure_speed
from dpdmd.models.student_file import STUDENT_FOLDER


def measure_speeds(runs: list[Run], reference: Run, prompts: list[str]) -> None:
    """Write speed.json into the first run of each student that has not failed, unless it is there already.

    All commands have finished by then, so that nothing of the comparison runs at the same time.
    """
    trained = [run for run in runs if run.arm.recipe is not None and failure(run) is None]
    first = {run.arm.name: run for run in reversed(trained)}
    how = read_manifest(reference.folder / "samples").info
    settings = {key: how.get(key) for key in ("num_inference_steps", "guidance_scale", "negative_prompt")}
    for run in reversed(first.values()):
        if not (run.folder / SPEED_FILE).exists():
            student = partial(open_model, str(run.folder / STUDENT_FOLDER))
            measure_speed(student, partial(open_model, str(reference.arm.model), **settings), prompts, run.folder)
