"""How near do students come to their teacher, at equal forwards and against the teacher's images of other seeds?

    python -m benchmarks.other_seeds --seeds 5 --jobs 2                    everything: hours on two cores
    python -m benchmarks.other_seeds flow --arms dmd dp_dmd --seeds 5      only these arms of one teacher

Every student has 4 steps and spends the same number of forwards (a backward pass counts as two) per sample, so that a
cheaper cycle gets more updates. Each draws 24 prompts x 64 images; the reference are the teacher's images of other
seeds, and the teacher's images of a third set of seeds are the floor of every distance.

    flow    the teacher "scenes"
    noise   the teacher "scenes_eps"

An interrupted command can be run again: what is finished in --out is not repeated. Writes
benchmarks/results/other_seeds.json and prints tables.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pareto import PUBLISHED, finished
from benchmarks.seeds import SHOWN
from dpdmd.compare.arms import REFERENCE, Arm, arrange
from dpdmd.compare.commands import run_all
from dpdmd.compare.measure import measure
from dpdmd.compare.summary import summarise_arms, table
from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import forwards_per_update
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.prompts import evaluation_prompts

FORWARDS = 4800  # of the denoising networks per sample of a batch and training
IMAGES = 64
FIRST_SEEDS = {REFERENCE: 10000, "floor": 20000}
# One fake-score update on the student's own samples; an anchor on half of the samples, guided nearly as the teacher is.
CHEAP = {
    "train.fake_updates": 1,
    "train.reuse_samples": "student",
    "train.schedule": "cosine",
    "objective.anchor.every": 1,
    "objective.anchor.fraction": 0.5,
}


def student_arms(group: str) -> list[Arm]:
    """The students of a group, with equal forwards."""
    if group == "noise":
        recipe, guided = "scenes_eps_dp_dmd", {}
        arms = [Arm("dmd", recipe, {"objective.name": "dmd"})]
    else:
        recipe, guided = "scenes_dp_dmd", {"objective.anchor.guidance_scale": 3.25}
        arms = [
            Arm("dmd", "scenes_dmd"),
            Arm("dmd_half_rate", "scenes_dmd", {"train.learning_rate": 2.5e-4}),
            Arm("dmd_falling_rate", "scenes_dmd", {"train.schedule": "cosine"}),
            Arm("dmd_perceptual", "scenes_dmd_perceptual"),
            Arm("dmd_adversarial", "scenes_dmd_adversarial"),
            Arm("dp_dmd_published", PUBLISHED),
        ]
    arms += [Arm("dp_dmd", recipe), Arm("dp_dmd_cheap", recipe, CHEAP | guided)]
    return [replace(arm, overrides=_budget(arm) | arm.overrides) for arm in arms]


def _budget(arm: Arm) -> dict[str, Any]:
    """As many updates as the forwards allow; nothing else is drawn or kept on the way."""
    assert arm.recipe is not None, "a student has a recipe"
    recipe = load_recipe(arm.recipe, arm.settings())
    forward, backward = forwards_per_update(resolve(recipe, load_adapter(recipe.model.teacher)))
    updates = round(FORWARDS / (forward + 2 * backward))
    return {"train.num_updates": updates, "validation.every": 0, "checkpoint.every": 100, "checkpoint.keep": 1}


def teacher_arms(group: str) -> list[Arm]:
    """The reference and the floor: the teacher at two further sets of seeds."""
    model = "scenes_eps" if group == "noise" else "scenes"
    guided = ("--guidance-scale", "3.5", "--num-inference-steps", "30")
    return [Arm(name, model=model, sampling=(*guided, "--seed", str(seed))) for name, seed in FIRST_SEEDS.items()]


def main() -> None:
    """Train, sample, score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="flow, noise; default: both")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run only these arms of the groups")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 0 ... N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", "other_seeds"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "other_seeds.json"))
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - {"flow", "noise"}:
        parser.error(f"unknown group {', '.join(unknown)}; choose from flow, noise")
    content: dict[str, Any] = {"groups": {}}
    for group in ("flow", "noise"):
        out, arms = arguments.out / group, student_arms(group)
        runs = arrange(out, teacher_arms(group), arms, list(range(arguments.seeds)))
        wanted = [run for run in runs if run.seed is None or not arguments.arms or run.arm.name in arguments.arms]
        if not arguments.groups or group in arguments.groups:
            run_all(
                wanted, out, prompts=evaluation_prompts(), images_per_prompt=IMAGES, batch_size=64, jobs=arguments.jobs
            )
        reference = runs[0]
        done = finished(runs)
        if reference not in done:
            continue
        scored = [run for run in done if run is not reference]
        made = summarise_arms(scored, measure(scored, reference))
        content["groups"][group] = {"arms": made, "settings": {arm.name: arm.overrides for arm in arms}}
        print(f"\n{group}\n\n{table(made, SHOWN)}")
    write_json(arguments.results, content | {"provenance": surroundings("python -m benchmarks.other_seeds")})
    print(f"\nwritten to {arguments.results}")


if __name__ == "__main__":
    main()
