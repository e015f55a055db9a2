"""Students of the teacher of drawings: how many of a prompt's drawings do they still draw?

    python -m benchmarks.drawings --jobs 2                              everything: some hours on two cores
    python -m benchmarks.drawings --arms dmd dp_dmd --seeds 0           only these students
    python -m benchmarks.drawings --arms dp_dmd_ode --seeds 0           another setting of DP-DMD (CHANGED)

DMD and DP-DMD by their shipped recipes, and DP-DMD with the settings that it had for scenes; DMD with a perceptual or
an adversarial term, and DP-DMD as published, with the settings that they had for scenes. All spend 4,800 forwards per
sample of a batch. Each student draws 24 prompts x 64 images, and is compared with the teacher's images of other
seeds; the teacher at a third set of seeds is the floor. An interrupted command can be run again, and rows of students
that are not asked for stay in the results. Writes benchmarks/results/drawings.json and docs/images/drawings.png:
eight seeds of six prompts by the teacher and by the students of the first training seed, all from the same noise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.other_seeds import ADVERSARIAL, PERCEPTUAL, budget
from benchmarks.pareto import PUBLISHED
from dpdmd.compare.arms import REFERENCE, Arm, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.compare.measure import measure
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.find import world_named

TEACHER = "drawings"
LABELS = {
    "floor": "teacher at a third set of seeds (floor)",
    "same_seeds": "teacher at the students' seeds",
    "dmd": "DMD",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
    "dp_dmd_published": "DP-DMD as published",
    "dp_dmd_of_scenes": "DP-DMD, the settings for scenes",
    "dp_dmd": "**DP-DMD**",
}
# The settings that carried over from scenes, and one thing changed; the latter are only run when --arms names them.
OF_SCENES: dict[str, Any] = {"train.learning_rate": 5e-4, "objective.anchor.guidance_scale": 3.5}
CHANGED: dict[str, dict[str, Any]] = {
    "dp_dmd_anchor_3": {"objective.anchor.guidance_scale": 3.0},
    "dp_dmd_half_rate": {"train.learning_rate": 2.5e-4},
    "dp_dmd_double_rate": {"train.learning_rate": 1e-3},
    "dp_dmd_all_anchored": {"objective.anchor.fraction": 1.0},
    "dp_dmd_ode": {"student.kind": "ode"},
}
COLUMNS = {"same_seeds": "Teacher, 30 steps", "dmd": "DMD, 4 steps", "dp_dmd": "DP-DMD, 4 steps"}  # of the picture
# The teacher is sampled at these seeds; the students and "same_seeds" at those from 0 on.
FIRST_SEEDS = {REFERENCE: 10_000, "floor": 20_000, "same_seeds": 0}
IMAGES_PER_PROMPT = 64
NUM_PROMPTS, NUM_SEEDS = 6, 8  # of the picture
RESULTS, PICTURE = Path("benchmarks", "results", "drawings.json"), Path("docs", "images", "drawings.png")
ZOOM, GAP, TITLE = 2, 20, 26  # of the picture, in its pixels but for the first


def all_runs(out: Path, seeds: list[int]) -> list[Run]:
    """The teacher at three sets of seeds, the reference first, then the students."""
    guided = ("--guidance-scale", "3.5", "--num-inference-steps", "30")
    teachers = [Arm(name, model=TEACHER, sampling=(*guided, "--seed", str(n))) for name, n in FIRST_SEEDS.items()]
    return arrange(out, teachers, student_arms(), seeds)


def student_arms() -> list[Arm]:
    """The students, with equal forwards; those of CHANGED last."""
    recipe = f"{TEACHER}_dp_dmd"
    arms = [
        Arm("dmd", f"{TEACHER}_dmd"),
        Arm("dmd_perceptual", f"{TEACHER}_dmd", PERCEPTUAL),
        Arm("dmd_adversarial", f"{TEACHER}_dmd", ADVERSARIAL),
        Arm("dp_dmd_published", PUBLISHED, {"model.teacher": TEACHER, "data.prompts": TEACHER}),
        Arm("dp_dmd", recipe),
        Arm("dp_dmd_of_scenes", recipe, OF_SCENES),
        *(Arm(name, recipe, OF_SCENES | change) for name, change in CHANGED.items()),
    ]
    return [replace(arm, overrides=budget(arm) | arm.overrides) for arm in arms]


def row_of(run: Run, reference: Run) -> dict[str, Any]:
    """A run as the results have it: its metrics against the reference, and their intervals over prompts."""
    (metrics,) = measure([run], reference)
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {"arm": run.arm.name, "seed": run.seed, "metrics": numbers, "intervals": metrics["intervals"]}


def with_those_before(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and those in the results of which there is no new one."""
    before = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    new = {(row["arm"], row["seed"]) for row in rows}
    return [row for row in before if (row["arm"], row["seed"]) not in new] + rows


def picture(runs: Sequence[Run], prompts: list[str]) -> Image.Image:
    """A line of NUM_SEEDS images for each prompt and a column for each run."""
    chosen = [i * len(prompts) // NUM_PROMPTS for i in range(NUM_PROMPTS)]
    side = ZOOM * world_named(TEACHER).image_size
    block, line = NUM_SEEDS * side, TITLE + side
    sheet = Image.new("RGB", (len(runs) * (block + GAP) + GAP, GAP + TITLE + NUM_PROMPTS * line + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, run in enumerate(runs):
        left = GAP + column * (block + GAP)
        draw.text((left, GAP // 2), COLUMNS[run.arm.name], font=ImageFont.load_default(20), fill="#1b1f24")
        for row, index in enumerate(chosen):
            top = GAP + TITLE + row * line
            draw.text((left, top + 6), prompts[index], font=ImageFont.load_default(14), fill="#424a53")
            for seed in range(NUM_SEEDS):
                image = Image.open(run.folder / "samples" / f"{index:04d}-{seed:06d}.png").convert("RGB")
                place = (left + seed * side, top + TITLE)
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def main() -> None:
    """Train, sample, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="training seeds; default: 0 to 4")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="train only these students")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", "drawings_students"))
    arguments = parser.parse_args()
    prompts = world_named(TEACHER).evaluation_prompts()
    runs = all_runs(arguments.out, arguments.seeds)
    runs = [run for run in runs if run.seed is None or run.arm.name in (arguments.arms or LABELS)]
    how = {"prompts": prompts, "images_per_prompt": IMAGES_PER_PROMPT, "batch_size": 64}
    run_all(runs, arguments.out, **how, jobs=arguments.jobs)
    reference, *others = runs
    rows = [row_of(run, reference) for run in others if failure(run) is None]
    write_json(RESULTS, {"rows": with_those_before(rows), "provenance": surroundings("python -m benchmarks.drawings")})
    print(f"written to {RESULTS}")
    shown = [run for run in others if run.arm.name in COLUMNS and run.seed in (None, arguments.seeds[0])]
    if {run.arm.name for run in shown} == set(COLUMNS):
        picture(shown, prompts).save(PICTURE, optimize=True)
        print(f"written to {PICTURE}")


if __name__ == "__main__":
    main()
