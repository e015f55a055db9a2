"""A comparison from arms to report: run, score, summarise. `dpdmd compare`, the demo and the benchmarks share it."""

import logging
from pathlib import Path
from typing import Any

from dpdmd.compare.arms import REFERENCE, Budget, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.compare.measure import RunMetrics, measure
from dpdmd.compare.plan import Teacher, plan_students, require_features, shared_teacher
from dpdmd.compare.speed import measure_speeds
from dpdmd.compare.summary import summarise_arms, summarise_runs, table
from dpdmd.compare.trade_off import on_axes, path_runs, paths, step_of
from dpdmd.data.prompts import evaluation_prompts_of
from dpdmd.evaluate.metrics import METRICS
from dpdmd.report.build import report_from_runs, verdict_sentence
from dpdmd.report.spreadsheet import write_rows
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings

logger = logging.getLogger(__name__)

IMAGES_PER_PROMPT = 16
# For students kept during training, which are points of a plot: the first ones of the same seeds.
PATH_IMAGES_PER_PROMPT = 4


def run_and_measure(
    runs: list[Run],
    out: Path,
    *,
    prompts: list[str],
    images_per_prompt: int = IMAGES_PER_PROMPT,
    features: str = "auto",
    batch_size: int | None = None,
    jobs: int = 1,
) -> list[RunMetrics]:
    """Train, sample and score all runs, or what is left to do of it; returns the metrics of each (see `measure`).

    The others are compared with the arm called "teacher". Raises ValueError when there is none, and like `run_all`.
    """
    reference = next((run for run in runs if run.arm.name == REFERENCE), None)
    if reference is None:
        raise ValueError(f'one arm must be called "{REFERENCE}": the others are compared with it')
    run_all(runs, out, prompts=prompts, images_per_prompt=images_per_prompt, batch_size=batch_size, jobs=jobs)
    measure_speeds(runs, reference, prompts)
    return measure(runs, reference, features=features)


def compare_recipes(
    recipes: list[str],
    out: str | Path,
    *,
    names: list[str],
    seeds: list[int],
    budget: Budget,
    sets: list[str],
    guidance: list[float],
    prompts: list[str] | None = None,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    features: str = "auto",
    batch_size: int | None = None,
    jobs: int = 1,
) -> Path:
    """Train every recipe with every seed under one budget and write one report into `out`; returns its path.

    guidance: scales at which the teacher is sampled in addition to the recipes' own. prompts: default those of the
    built-in world. Also writes comparison.json ({"arms": {name: {metric: summary}}, "setup", "runs", "paths", "curve",
    "provenance"}) and comparison.csv, a line for each folder of images that was scored. Called again, it continues.
    Raises ValueError, before anything runs, for what cannot be compared.
    """
    if images_per_prompt < 2:
        raise ValueError(f"--images-per-prompt must be at least 2, got {images_per_prompt}: one image has no diversity")
    out, path_images = Path(out), min(PATH_IMAGES_PER_PROMPT, images_per_prompt)
    students = plan_students(recipes, names=names, sets=sets, budget=budget)
    teacher = shared_teacher(students)
    prompts = prompts or evaluation_prompts_of(teacher.model)
    require_features(features, teacher, prompts)
    logger.info("%d arms x %d seeds, %s each, in %s", len(students), len(seeds), budget, out)

    runs, curve = arrange(out, teacher.arms(), students, seeds), _curve_runs(out, teacher, guidance)
    how: dict[str, Any] = {"prompts": prompts, "batch_size": batch_size, "jobs": jobs}
    all_runs = [*runs, *curve.values()]
    all_measured = run_and_measure(all_runs, out, images_per_prompt=images_per_prompt, features=features, **how)
    measured = all_measured[: len(runs)]
    of_curve = dict(zip(curve, all_measured[len(runs) :], strict=True))
    points = path_runs(runs)
    run_all(points, out, images_per_prompt=path_images, **how)
    of_points = measure(points, runs[0], features=features)

    arms = summarise_arms(runs, measured)
    content = {
        "arms": arms,
        "setup": {
            "teacher": teacher.model,
            "guidance_scale": teacher.guidance_scale,
            "num_inference_steps": teacher.num_inference_steps,
            "budget": str(budget),
            "seeds": seeds,
            "jobs": jobs,
            "num_prompts": len(prompts),
            "images_per_prompt": images_per_prompt,
            "path_images_per_prompt": path_images,
            "students": {arm.name: {"recipe": arm.recipe, **arm.overrides} for arm in students},
        },
        "runs": {name: [_place(run, out) for run in runs if run.arm.name == name] for name in arms},
        "paths": paths(points, of_points),
        "curve": _curve({teacher.guidance_scale: measured[0]} | of_curve),
        "provenance": surroundings(),
    }
    write_json(out / "comparison.json", content)
    lines = [_line(run, metrics) for run, metrics in zip(all_runs, all_measured, strict=True)]
    lines += [_line(run, own) | {"updates": step_of(run.folder)} for run, own in zip(points, of_points, strict=True)]
    write_rows(out / "comparison.csv", lines)
    report = report_from_runs([out], out / "report.html")
    print(f"\n{table(arms)}\n\n{verdict_sentence([out])}\nThe page: {report.resolve()}")
    return report


def _curve_runs(out: Path, teacher: Teacher, scales: list[float]) -> dict[float, Run]:
    """Runs of the teacher at every scale but its own."""
    names = {scale: f"guidance-{scale:g}" for scale in scales if scale != teacher.guidance_scale}
    return {scale: Run(teacher.arm(name, scale), out / "teachers" / name) for scale, name in names.items()}


def _curve(measured: dict[float, RunMetrics]) -> list[dict[str, Any]]:
    """The teacher's points by rising scale; none when it was sampled at its own scale only."""
    if len(measured) < 2:
        return []
    return [{"guidance_scale": scale} | on_axes(summarise_runs([measured[scale]])) for scale in sorted(measured)]


def _place(run: Run, out: Path) -> dict[str, Any]:
    return {"seed": run.seed, "folder": str(run.folder.relative_to(out)), "failure": failure(run)}


def _line(run: Run, metrics: RunMetrics) -> dict[str, Any]:
    known = {metric.key: metrics[metric.key] for metric in METRICS if metric.key in metrics}
    return {"arm": run.arm.name, "seed": run.seed, "images_per_prompt": metrics.get("images_per_prompt"), **known}
