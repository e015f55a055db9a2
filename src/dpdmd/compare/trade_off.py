"""Diversity against quality during training, from the students that were kept."""

from pathlib import Path
from typing import Any

from dpdmd.compare.arms import Arm, Run
from dpdmd.compare.commands import failure
from dpdmd.compare.measure import RunMetrics
from dpdmd.compare.summary import Summary, summarise_runs
from dpdmd.training.run.folder import RunFolder

AXES = ("diversity_share", "quality")
MOST_POINTS = 8


def path_runs(runs: list[Run]) -> list[Run]:
    """Runs that sample the students kept during training, each into RUN/path/step-000050.

    Of each arm: the steps at which all its runs, except failed ones, kept a student, without the last step of each run;
    at most MOST_POINTS = 8 of them, evenly spaced.
    """
    points = []
    for name in dict.fromkeys(run.arm.name for run in runs if run.arm.recipe):
        own = [run for run in runs if run.arm.name == name and failure(run) is None]
        kept = [RunFolder(run.folder).kept_students() for run in own]
        steps = sorted(set.intersection(*(set(list(students)[:-1]) for students in kept))) if kept else []
        for run, students in zip(own, kept, strict=True):
            for step in _spread(steps):
                arm = Arm(name, model=str(students[step]))
                points.append(Run(arm, run.folder / "path" / students[step].name, run.seed))
    return points


def paths(points: list[Run], measured: list[RunMetrics]) -> dict[str, list[dict[str, Any]]]:
    """{arm: [{"step", "diversity_share", "quality"}, early to late]}, both metrics as summaries over seeds."""
    by_place: dict[tuple[str, int], list[RunMetrics]] = {}
    for run, metrics in zip(points, measured, strict=True):
        by_place.setdefault((run.arm.name, step_of(run.folder)), []).append(metrics)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, step in sorted(by_place):
        found.setdefault(name, []).append({"step": step} | on_axes(summarise_runs(by_place[name, step])))
    return found


def step_of(folder: Path) -> int:
    """50 of .../step-000050."""
    return int(folder.name.removeprefix("step-"))


def on_axes(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """The two metrics of the plot, of those that were summarised."""
    return {axis: summaries[axis] for axis in AXES if axis in summaries}


def _spread(steps: list[int]) -> list[int]:
    if len(steps) <= MOST_POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
