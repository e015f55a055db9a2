"""A comparison from arms to report: run, score, sum up. `dpdmd compare`, the demo and the benchmarks share it."""

from pathlib import Path
from typing import Any

from dpdmd.compare.arms import REFERENCE, Budget, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.compare.measure import Row, measure
from dpdmd.compare.plan import Teacher, plan_students, prompts_of, require_features, shared_teacher
from dpdmd.compare.summary import summarise_arms, summarise_rows, table
from dpdmd.compare.trade_off import on_axes, path_runs, paths, step_of
from dpdmd.evaluate.metrics import METRICS
from dpdmd.report.build import report_from_runs
from dpdmd.report.spreadsheet import write_rows
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings

IMAGES_PER_PROMPT = 16
# Of students on the way, which are points of a picture: of the same seeds, the first ones.
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
) -> list[Row]:
    """Train, sample and score all runs, going on where that was interrupted; returns a row for each (see `measure`).

    One must be called "teacher": the others are compared with it. Raises ValueError without, and like `run_all`.
    """
    reference = next((run for run in runs if run.arm.name == REFERENCE), None)
    if reference is None:
        raise ValueError(f'one arm must be called "{REFERENCE}": the others are compared with it')
    run_all(runs, out, prompts=prompts, images_per_prompt=images_per_prompt, batch_size=batch_size, jobs=jobs)
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

    guidance: scales at which the teacher is sampled beside the recipes' own. prompts: default those of the built-in
    world. Beside report.html: comparison.json ({"arms": {name: {figure: summary}}, "setup", "runs", "paths", "curve",
    "provenance"}) and comparison.csv, a line for all that was scored. Called again it goes on where it was interrupted.
    Raises ValueError, before anything runs, for what cannot be compared.
    """
    if images_per_prompt < 2:
        raise ValueError(f"--images-per-prompt must be at least 2, got {images_per_prompt}: one image has no diversity")
    out, path_images = Path(out), min(PATH_IMAGES_PER_PROMPT, images_per_prompt)
    students = plan_students(recipes, names=names, sets=sets, budget=budget)
    teacher = shared_teacher(students)
    prompts = prompts or prompts_of(teacher)
    require_features(features, teacher, prompts)
    print(f"{len(students)} arms x {len(seeds)} seeds, {budget} each, in {out}", flush=True)

    runs, curve = arrange(out, teacher.arms(), students, seeds), _curve_runs(out, teacher, guidance)
    how: dict[str, Any] = {"prompts": prompts, "batch_size": batch_size, "jobs": jobs}
    all_runs = [*runs, *curve.values()]
    all_rows = run_and_measure(all_runs, out, images_per_prompt=images_per_prompt, features=features, **how)
    rows, curve_rows = all_rows[: len(runs)], dict(zip(curve, all_rows[len(runs) :], strict=True))
    points = path_runs(runs)
    run_all(points, out, images_per_prompt=path_images, **how)
    point_rows = measure(points, runs[0], features=features)

    arms = summarise_arms(runs, rows)
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
        "paths": paths(points, point_rows),
        "curve": _curve({teacher.guidance_scale: rows[0]} | curve_rows),
        "provenance": surroundings(),
    }
    write_json(out / "comparison.json", content)
    lines = [_line(run, row) for run, row in zip(all_runs, all_rows, strict=True)]
    lines += [_line(run, row) | {"updates": step_of(run.folder)} for run, row in zip(points, point_rows, strict=True)]
    write_rows(out / "comparison.csv", lines)
    report = report_from_runs([out], out / "report.html")
    print(f"\n{table(arms)}\n\nreport: {report.resolve()}")
    return report


def _curve_runs(out: Path, teacher: Teacher, scales: list[float]) -> dict[float, Run]:
    """The teacher at every scale but its own."""
    names = {scale: f"guidance-{scale:g}" for scale in scales if scale != teacher.guidance_scale}
    return {scale: Run(teacher.arm(name, scale), out / "teachers" / name) for scale, name in names.items()}


def _curve(rows: dict[float, Row]) -> list[dict[str, Any]]:
    """The teacher's points by rising scale; none where it was sampled at its own alone."""
    if len(rows) < 2:
        return []
    return [{"guidance_scale": scale} | on_axes(summarise_rows([rows[scale]])) for scale in sorted(rows)]


def _place(run: Run, out: Path) -> dict[str, Any]:
    return {"seed": run.seed, "folder": str(run.folder.relative_to(out)), "failure": failure(run)}


def _line(run: Run, row: Row) -> dict[str, Any]:
    known = {metric.key: row[metric.key] for metric in METRICS if metric.key in row}
    return {"arm": run.arm.name, "seed": run.seed, "images_per_prompt": row.get("images_per_prompt"), **known}
