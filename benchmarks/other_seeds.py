"""How near do students come to their teacher, at equal forwards and against the teacher's images of other seeds?

    python -m benchmarks.other_seeds --jobs 2                              everything: some hours on two cores
    python -m benchmarks.other_seeds flow --arms dmd dp_dmd --seeds 5      only these arms of one teacher

Every student has 4 steps and spends the same number of forwards (a backward pass counts as two) per sample, so that a
cheaper cycle gets more updates. Each draws 24 prompts x 64 images; the reference are the teacher's images of other
seeds. The teacher's images of four further sets of seeds, the students' among them, are the floor of every distance.

    flow    the teacher "scenes"
    noise   the teacher "scenes_eps"

Some students of seed 0 are also scored on the way. An interrupted command can be run again: a run is not repeated
if it is in the results with the same settings, or finished in --out. Writes benchmarks/results/other_seeds.json, from
which benchmarks.other_seeds_page makes the tables and pictures of the documentation.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.clean_scenes import read_cells
from benchmarks.pareto import BEFORE, PUBLISHED, finished
from dpdmd.compare.arms import REFERENCE, Arm, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.compare.measure import measure
from dpdmd.compare.trade_off import path_runs, step_of
from dpdmd.models.load import load_adapter
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.cache import batches
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.prompts import evaluation_prompts

RESULTS = Path("benchmarks", "results", "other_seeds.json")
GROUPS = {"flow": "scenes", "noise": "scenes_eps"}
FORWARDS = 4800  # of the denoising networks per sample of a batch and training
IMAGES, STUDENT_POINTS = 64, 4
# Of each set of the teacher's images: one set alone is a poor measure of its diversity and of the floors.
FIRST_SEEDS = {REFERENCE: 10000, "floor": 20000, "floor_0": 0, "floor_30000": 30000, "floor_40000": 40000}
FLOORS = tuple(FIRST_SEEDS)[1:]
# Arms whose student of seed 0 is also scored before the end.
ON_THE_WAY = ("dmd_falling_rate", "dp_dmd_before", "dp_dmd")
# What the recipes were before they had the settings that these results led to.
ANCHOR_BEFORE = {"flow": 2.5, "noise": 3.5}
UNALIGNED = {"train.ida_decay": 1.0}  # and before the fake score was aligned to the student
# The rivals' settings of the flow's recipes, and the published ones of benchmarks/published.toml, for another teacher.
PERCEPTUAL = {
    "objective.name": "dmd_perceptual",
    "objective.perceptual.weight": 0.25,
    "objective.perceptual.backbone": "scenes",
    "objective.perceptual.num_pairs": 4800,
}
ADVERSARIAL = {
    "objective.name": "dmd_adversarial",
    "objective.adversarial.weight": 0.05,
    "objective.adversarial.num_real": 512,
}
OF_THE_PAPER = {
    "student.grid": "stock",
    "objective.tau_shift": 1.0,
    "objective.anchor.every": 1,
    "objective.anchor.weight": 0.05,
    "objective.anchor.steps": 5,
    "objective.anchor.coarse_steps": 30,
    "objective.anchor.second_order": False,
    "train.reuse_samples": False,
    "train.random_step": False,
}

Row = dict[str, Any]


def student_arms(group: str) -> list[Arm]:
    """The students of a group, with equal forwards."""
    recipe = f"{GROUPS[group]}_dp_dmd"
    before = BEFORE | {"objective.anchor.guidance_scale": ANCHOR_BEFORE[group]}
    dmd = before | {"objective.name": "dmd"}
    arms = [
        Arm("dmd", recipe, dmd),
        Arm("dmd_half_rate", recipe, dmd | {"train.learning_rate": 2.5e-4}),
        Arm("dmd_falling_rate", recipe, dmd | {"train.schedule": "cosine"}),
        Arm("dp_dmd_before", recipe, before),
        Arm("dp_dmd", recipe),
        Arm("dp_dmd_unaligned", recipe, UNALIGNED | {"objective.anchor.coarse_steps": 4}),
    ]
    if group == "flow":
        arms += [
            Arm("dp_dmd_ode", recipe, UNALIGNED | {"student.kind": "ode"}),
            Arm("dp_dmd_weight_0.05", recipe, UNALIGNED | {"objective.anchor.weight": 0.05}),
            Arm("dp_dmd_anchor_3", recipe, {"objective.anchor.guidance_scale": 3.0}),
            Arm("dp_dmd_anchor_3.5", recipe, {"objective.anchor.guidance_scale": 3.5}),
            Arm("dp_dmd_every_2", recipe, UNALIGNED | {"objective.anchor.every": 2, "objective.anchor.fraction": 1.0}),
            Arm("dmd_perceptual", "scenes_dmd_perceptual"),
            Arm("dmd_adversarial", "scenes_dmd_adversarial"),
            Arm("dp_dmd_published", PUBLISHED),
        ]
    else:  # with the settings that the sweeps of benchmarks.pareto gave the rivals for the flow
        arms += [
            Arm("dmd_perceptual", recipe, before | PERCEPTUAL),
            Arm("dmd_adversarial", recipe, before | ADVERSARIAL),
            Arm("dp_dmd_published", recipe, before | OF_THE_PAPER),
        ]
    return [replace(arm, overrides=budget(arm) | arm.overrides) for arm in arms]


def budget(arm: Arm) -> dict[str, Any]:
    """As many updates as the forwards allow, and the students on the way."""
    assert arm.recipe is not None, "a student has a recipe"
    recipe = load_recipe(arm.recipe, arm.settings())
    forward, backward = forwards_per_update(resolve(recipe, load_adapter(recipe.model.teacher)))
    updates = round(FORWARDS / (forward + 2 * backward))
    return {
        "train.num_updates": updates,
        "validation.every": 0,
        "checkpoint.every": round(updates / STUDENT_POINTS),
        "checkpoint.keep": 1,
        "checkpoint.students": True,
    }


def teacher_arms(group: str) -> list[Arm]:
    """The reference and the floors: the teacher at several sets of seeds."""
    guided = ("--guidance-scale", "3.5", "--num-inference-steps", "30")
    return [Arm(name, model=GROUPS[group], sampling=(*guided, "--seed", str(n))) for name, n in FIRST_SEEDS.items()]


def hybrids_of(runs: list[Run]) -> list[Run]:
    """DP-DMD's students with the guided teacher in place of step 1: what is left is the later steps' own error."""
    guided = ("--teacher-first", "--guidance-scale", "3.5", "--num-inference-steps", "30")
    name = "dp_dmd_teacher_first"
    return [
        Run(Arm(name, model=str(run.folder), sampling=guided), run.folder.with_name(name), run.seed)
        for run in runs
        if run.arm.name == "dp_dmd"
    ]


def settings(run: Run) -> list[str]:
    """What a run was made with: the keys of its recipe that are not at their defaults, or how a teacher was drawn."""
    arm = run.arm
    if arm.recipe is None:
        return [Path(arm.model or "").name, *arm.sampling]
    recipe = load_recipe(arm.recipe, arm.settings()).model_dump(mode="json", exclude_defaults=True)
    for table in ("checkpoint", "output", "validation"):  # of no influence on the student
        recipe.pop(table, None)
    return [f"{table}.{key} = {value}" for table, keys in sorted(recipe.items()) for key, value in sorted(keys.items())]


def row_of(run: Run, reference: Run, *, forwards: float | None = None) -> Row:
    """A run as the results have it.

    metrics: numbers against the reference. intervals: over prompts. clean: share of clean scenes of each prompt. cells:
    {"shape size background": [clean images, images]}. forwards: spent on a student that was kept on the way.
    """
    (metrics,) = measure([run], reference)
    cells = read_cells([run])
    return {
        "arm": run.arm.name,
        "seed": run.seed,
        "settings": settings(run),
        "forwards": forwards,
        "metrics": {key: value for key, value in metrics.items() if isinstance(value, (int, float))},
        "intervals": metrics["intervals"],
        "clean": [prompt["validity"] for prompt in read_json(run.folder / "metrics.json")["per_prompt"]],
        "cells": {" ".join(cell): [sum(images), len(images)] for cell, images in sorted(cells.items())},
    }


def recorded(rows: list[Row], run: Run) -> Row | None:
    """The row of a run with the same settings, if the results have it."""
    same = (row for row in rows if (row["arm"], row["seed"]) == (run.arm.name, run.seed) and row["forwards"] is None)
    return next((row for row in same if row["settings"] == settings(run)), None)


def on_the_way(runs: list[Run], reference: Run, out: Path) -> list[Row]:
    """Rows of the students that these runs kept before their ends."""
    points = [point for run in runs for point in path_runs([run])]
    run_all(points, out, prompts=evaluation_prompts(), images_per_prompt=IMAGES, batch_size=64)
    updates = {(run.arm.name, run.seed): run.arm.overrides["train.num_updates"] for run in runs}
    share = {point.folder: step_of(point.folder) / updates[point.arm.name, point.seed] for point in points}
    return [row_of(point, reference, forwards=FORWARDS * share[point.folder]) for point in points]


def read_rows(results: Path, group: str) -> list[Row]:
    """The recorded rows of a group."""
    return read_json(results)["rows"].get(group, []) if results.exists() else []


def record(results: Path, group: str, new: list[Row]) -> None:
    """Write new rows into the results, in place of earlier ones of the same arms and seeds."""
    content = read_json(results) if results.exists() else {"rows": {}}
    replaced = {(row["arm"], row["seed"]) for row in new}
    kept = [row for row in content["rows"].get(group, []) if (row["arm"], row["seed"]) not in replaced]
    content["rows"][group] = kept + new
    content["provenance"] = surroundings("python -m benchmarks.other_seeds")
    write_json(results, content)


def main() -> None:
    """Train, sample, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="flow, noise; default: both")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run only these arms of the groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="training seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", "other_seeds"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    for group in arguments.groups or GROUPS:
        out = arguments.out / group
        reference, *runs = arrange(out, teacher_arms(group), student_arms(group), arguments.seeds)
        how = {"prompts": evaluation_prompts(), "images_per_prompt": IMAGES, "batch_size": 64}
        run_all([reference], out, **how)
        wanted = [run for run in runs if run.seed is None or not arguments.arms or run.arm.name in arguments.arms]
        rows = read_rows(arguments.results, group)
        missing = [run for run in wanted if not all(recorded(rows, part) for part in (run, *hybrids_of([run])))]
        for together in batches(missing, arguments.jobs):
            run_all(together, out, **how, jobs=arguments.jobs)
            ended = [run for run in finished(together) if failure(run) is None]
            hybrids = hybrids_of(ended)
            run_all(hybrids, out, **how)
            firsts = [run for run in ended if run.seed == 0 and run.arm.name in ON_THE_WAY]
            new = [row_of(run, reference) for run in ended + hybrids] + on_the_way(firsts, reference, out)
            record(arguments.results, group, new)
    print(f"written to {arguments.results}")


if __name__ == "__main__":
    main()
