"""Diversity against quality of the teacher, DP-DMD and its rivals; single options; sweeps of the main settings.

    python -m benchmarks.pareto --jobs 2                          everything: a day on two cores
    python -m benchmarks.pareto main options --jobs 2             only these groups

Every student has 4 steps (except in the sweep of N) and is trained for 150 updates (except in the last group) with
batch size 32. All share noise, prompts and learning rates. The last column is the number of training seeds of a group,
which --seeds limits:

    main       DMD and its rivals with equal settings; DMD as published, and with scores compared at high noise;
               DP-DMD as published (K 5, lambda 0.05, stock grid) and with the values of its authors' script (K 10);
               re-noising students; the hybrids; the teacher                                                           5
    rivals     sweeps of the rivals' own main settings                                                                 3
    options    our defaults with one option changed                                                                    3
    frontier   the guidance scale of the anchor                                                                        3
    sweeps     K, lambda, N, guidance scale and learning rate around our defaults; the last three also for DMD         3
    longer     DMD and DP-DMD with twice as many updates                                                               3

An interrupted command can be run again, also on several machines: a run is not repeated if --results contains it with
the same settings, or if it is finished in --out; the results contain both. To measure everything again, give another
--results. Every student is compared with the teacher at the student's own guidance scale.

Writes benchmarks/results/pareto.json and prints tables.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.seeds import SHOWN
from dpdmd.compare.arms import FEW_STEPS, REFERENCE, Arm, Run, arrange
from dpdmd.compare.commands import failure, run_all
from dpdmd.compare.measure import RunMetrics, measure
from dpdmd.compare.summary import PROMPTS, summarise_arms, table
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.prompts import evaluation_prompts

GUIDANCE = 3.5
# The settings of the recipes scenes_dp_dmd and scenes_eps_dp_dmd when this was measured; those of now:
# benchmarks.other_seeds.
BEFORE = {
    "student.kind": "ode",
    "objective.anchor.every": 2,
    "objective.anchor.fraction": 1.0,
    "objective.anchor.coarse_steps": 4,
    "train.fake_updates": 5,
    "train.ida_decay": 1.0,
    "train.reuse_samples": True,
    "train.schedule": "constant",
}
COMMON = {
    "train.num_updates": 150,
    "train.learning_rate": 5e-4,
    "validation.every": 0,
    "checkpoint.every": 50,
    "checkpoint.keep": 1,
}
PUBLISHED = str(Path(__file__).with_name("published.toml"))
# DMD's schedule as published: uniform noise levels, fresh samples for every update, all steps trained at once.
PUBLISHED_DMD = {"objective.tau_shift": 1.0, "train.reuse_samples": False, "train.random_step": False}
# A re-noising student, as in DMD2.
RENOISE = {"student.kind": "renoise"}
# Guidance scale of the anchor in these settings, and all scales that are compared.
ANCHOR_SCALE, ANCHOR_SCALES = 2.5, (1.0, 2.5, 3.5)
OF_DP_DMD = COMMON | BEFORE | {"objective.anchor.guidance_scale": ANCHOR_SCALE}
OPTIONS = {
    "tau_shift_0.25": {"objective.tau_shift": 0.25},
    "tau_uniform": {"objective.tau_shift": 1.0},
    "tau_shift_3": {"objective.tau_shift": 3.0},
    "tau_shift_6": {"objective.tau_shift": 6.0},
    "whole_rollout": {"train.random_step": False},
    "own_samples": {"train.reuse_samples": False},
    "fine_anchor": {"objective.anchor.coarse_steps": 30, "objective.anchor.second_order": False},
    "coarser_anchor": {"objective.anchor.coarse_steps": 2},
    "anchor_every_update": {"objective.anchor.every": 1},
    "two_step_anchor_every_update": {
        "objective.anchor.every": 1,
        "objective.anchor.coarse_steps": 2,
        "objective.anchor.guidance_scale": 2.0,
    },
    "three_step_anchor_every_update": {"objective.anchor.every": 1, "objective.anchor.coarse_steps": 3},
    "anchor_every_4": {"objective.anchor.every": 4},
    "anchor_guidance_3": {"objective.anchor.guidance_scale": 3.0},
    "x0_anchor": {"objective.anchor.target": "x0"},
    "four_per_prompt": {"data.samples_per_prompt": 4},
    "faster_fake": {"train.fake_learning_rate": 1e-3},
    "renoise": RENOISE,
}
RIVAL_WEIGHTS = {"perceptual": (0.25, 0.05, 0.1, 1.0), "adversarial": (0.05, 0.01, 0.2)}  # the recipe's first
STEPS = (2, 3, 4, 8)
SCALES = (1.0, 2.0, 3.5, 5.0, 8.0)
LEARNING_RATES = (2.5e-4, 1e-3)  # 5e-4 otherwise, for both networks


def _dmd(name: str, settings: dict) -> Arm:
    return Arm(name, "scenes_dmd", COMMON | settings)


def _dp_dmd(name: str, settings: dict) -> Arm:
    return Arm(name, "scenes_dp_dmd", OF_DP_DMD | settings)


def main_arms() -> list[Arm]:
    """The main comparison: every method as published, and with the settings that measured best."""
    return [
        _dp_dmd("dp_dmd_default", {}),
        _dmd("dmd", {}),
        _dmd("dmd_published", PUBLISHED_DMD),
        _dmd("dmd_high_noise", PUBLISHED_DMD | {"objective.tau_shift": 6.0}),
        Arm("dp_dmd_published", PUBLISHED, COMMON),
        Arm("dp_dmd_script", PUBLISHED, COMMON | {"objective.anchor.steps": 10}),
        Arm("dmd_perceptual", "scenes_dmd_perceptual", COMMON),
        Arm("dmd_adversarial", "scenes_dmd_adversarial", COMMON),
        _dmd("dmd_renoise", RENOISE),
        _dp_dmd("renoise_anchor_guidance_2", RENOISE | {"objective.anchor.guidance_scale": 2.0}),
        _dp_dmd("renoise_anchor_guidance_1.75", RENOISE | {"objective.anchor.guidance_scale": 1.75}),
    ]


def rival_arms() -> list[Arm]:
    """Each rival over its main setting; all of them and DMD with scores compared at other noise levels."""
    arms = [_dmd(f"dmd_tau_shift_{shift:g}", {"objective.tau_shift": shift}) for shift in (0.25, 1.0, 3.0, 6.0)]
    for name, weights in RIVAL_WEIGHTS.items():
        for i, weight in enumerate(weights):
            settings = {f"objective.{name}.weight": weight}
            if i:  # the first one is the recipe's, and a main arm
                arms.append(Arm(f"{name}_{weight:g}", f"scenes_dmd_{name}", COMMON | settings))
            noisy = COMMON | settings | {"objective.tau_shift": 6.0}
            arms.append(Arm(f"{name}_{weight:g}_high_noise", f"scenes_dmd_{name}", noisy))
    return arms


def option_arms() -> list[Arm]:
    """One option changed at a time."""
    return [_dp_dmd(name, option) for name, option in OPTIONS.items()]


def frontier_arms() -> list[Arm]:
    """Guidance scales of the anchor, except the recipe's, which is among the main arms."""
    return [
        _dp_dmd(f"dp_dmd_guided_everywhere_anchor_{scale:g}", {"objective.anchor.guidance_scale": scale})
        for scale in ANCHOR_SCALES
        if scale != ANCHOR_SCALE
    ]


def sweep_arms() -> list[Arm]:
    """K, lambda, N, guidance scale (the anchor's s - 1 in the same ratio to it as in the recipe) and learning rate."""
    arms = [_dp_dmd(f"k_{k}", {"objective.anchor.steps": k}) for k in (3, 5, 10, 20)]
    arms += [_dp_dmd(f"lambda_{weight:g}", {"objective.anchor.weight": weight}) for weight in (0.05, 0.25, 0.5, 4.0)]
    for n in STEPS:
        if n != 4:
            arms += [make(f"{name}_n_{n}", {"student.num_steps": n}) for name, make in MAKERS.items()]
    for scale in SCALES:
        if scale != GUIDANCE:
            guided = {"model.guidance_scale": scale}
            arms.append(_dmd(f"dmd_guidance_{scale:g}", guided))
            anchor = 1 + (ANCHOR_SCALE - 1) / (GUIDANCE - 1) * (scale - 1)
            arms.append(_dp_dmd(f"dp_dmd_guidance_{scale:g}", guided | {"objective.anchor.guidance_scale": anchor}))
    for rate in LEARNING_RATES:
        arms += [make(f"{name}_rate_{rate:g}", {"train.learning_rate": rate}) for name, make in MAKERS.items()]
    return arms


def longer_arms() -> list[Arm]:
    """DMD and DP-DMD with twice as many updates: does either keep losing diversity?"""
    return [make(f"{name}_longer", {"train.num_updates": 300}) for name, make in MAKERS.items()]


HYBRIDS = {"dmd": "hybrid", "dp_dmd_default": "dp_dmd_hybrid"}
MAKERS = {"dmd": _dmd, "dp_dmd": _dp_dmd}
GROUPS = {
    "main": (main_arms, 5),
    "rivals": (rival_arms, 3),
    "options": (option_arms, 3),
    "frontier": (frontier_arms, 3),
    "sweeps": (sweep_arms, 3),
    "longer": (longer_arms, 3),
}
STUDENTS = {arm.name: arm for make, _ in GROUPS.values() for arm in make()}
SOURCES = {hybrid: student for student, hybrid in HYBRIDS.items()}


def teacher_arm(scale: float) -> Arm:
    """The teacher at a guidance scale; at the scale of the recipes it is the reference."""
    name = REFERENCE if scale == GUIDANCE else f"teacher_guidance_{scale:g}"
    return Arm(name, model="scenes", sampling=("--guidance-scale", f"{scale:g}"))


def teacher_arms() -> list[Arm]:
    """The teacher at all guidance scales, and with as few steps as the students."""
    few = [
        Arm(
            f"{FEW_STEPS}_{n}",
            model="scenes",
            sampling=("--guidance-scale", f"{GUIDANCE:g}", "--num-inference-steps", str(n)),
        )
        for n in STEPS
    ]
    return [teacher_arm(scale) for scale in SCALES] + few


def hybrids(runs: list[Run]) -> list[Run]:
    """The hybrid of every student in HYBRIDS: the guided teacher replaces its first step."""
    return [
        Run(
            Arm(name, model=str(run.folder), sampling=("--teacher-first",)),
            run.folder.with_name(name),
            run.seed,
        )
        for run in runs
        if (name := HYBRIDS.get(run.arm.name))
    ]


def finished(runs: list[Run]) -> list[Run]:
    """The runs in this folder that are trained and sampled, or have failed."""
    return [run for run in runs if (run.folder / "cost.json").exists() or failure(run)]


def settings(name: str) -> dict[str, Any]:
    """The keys of a student's recipe that are not at their defaults, except for seed and folder."""
    arm = STUDENTS[SOURCES.get(name, name)]
    keys = load_recipe(arm.recipe, arm.settings()).model_dump(mode="json", exclude_defaults=True)
    keys["train"].pop("seed", None)
    return trained(keys)


def trained(keys: dict[str, Any]) -> dict[str, Any]:
    """The tables of a recipe that have an influence on the student."""
    return {table: own for table, own in keys.items() if table not in ("checkpoint", "output", "validation")}


def recorded(earlier: dict[str, Any], run: Run) -> RunMetrics | None:
    """The metrics of a student's run with the same settings in earlier results; None if they lack it."""
    made = earlier["students"].get(run.arm.name)
    if made is None or run.seed not in made["seeds"] or trained(made["settings"]) != settings(run.arm.name):
        return None
    i, arm = made["seeds"].index(run.seed), earlier["arms"][run.arm.name]
    over_prompts = {key: [own["low"], own["high"]] for key, own in arm.items() if own.get("interval") == PROMPTS}
    return {key: own["values"][i] for key, own in arm.items()} | {"intervals": over_prompts}


def scored(runs: list[Run], teachers: list[Run]) -> list[RunMetrics]:
    """The metrics of each run, compared with the teacher at the guidance scale of the run."""
    by_name = {run.arm.name: run for run in teachers}
    references = [by_name[teacher_arm(run.arm.overrides.get("model.guidance_scale", GUIDANCE)).name] for run in runs]
    return [row for run, reference in zip(runs, references, strict=True) for row in measure([run], reference)]


def results(groups: dict[str, list[Run]], teachers: list[Run], earlier: dict[str, Any]) -> dict[str, Any]:
    """{"arms": their summaries, "groups": their names, "students": settings and seeds} of all finished runs."""
    content = {"arms": {}, "groups": {}, "students": {}}
    for name, runs in groups.items():
        rows = {run.folder: row for run in runs if (row := recorded(earlier, run))}
        new = finished([run for run in runs if run.folder not in rows])
        rows |= dict(zip((run.folder for run in new), scored(new, teachers), strict=True))
        runs = [run for run in runs if run.folder in rows]
        group = summarise_arms(runs, [rows[run.folder] for run in runs])
        content["groups"][name], content["arms"] = list(group), content["arms"] | group
        for run in runs:
            if run.seed is not None:
                empty = {"settings": settings(run.arm.name), "seeds": []}
                content["students"].setdefault(run.arm.name, empty)["seeds"].append(run.seed)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run only these arms of the groups")
    parser.add_argument("--seeds", type=int, default=5, help="maximum number of training seeds, 0 ... N-1")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs; each gets a share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", "pareto"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "pareto.json"))
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    out, how = arguments.out, {"prompts": evaluation_prompts(), "images_per_prompt": 16, "jobs": arguments.jobs}

    teachers = arrange(out, teacher_arms(), [], [])
    students = {name: arrange(out, [], arms(), list(range(seeds))) for name, (arms, seeds) in GROUPS.items()}
    # Seed by seed: whenever this is interrupted, all arms have about equally many seeds.
    wanted = [run for name in arguments.groups or GROUPS for run in students[name] if run.seed < arguments.seeds]
    wanted.sort(key=lambda run: run.seed)
    if arguments.arms:
        wanted = [run for run in wanted if run.arm.name in arguments.arms]
    earlier = read_json(arguments.results) if arguments.results.exists() else {"students": {}}
    wanted = [run for run in wanted if not recorded(earlier, run)]
    run_all([*teachers, *wanted], out, **how)
    run_all(hybrids([run for run in wanted if not failure(run)]), out, **how)

    students["main"] = teachers + students["main"] + hybrids(students["main"])
    content = results(students, teachers, earlier)
    for name, group in content["groups"].items():
        print(f"\n{name}\n\n{table({arm: content['arms'][arm] for arm in group}, SHOWN)}")
    made = surroundings("python -m benchmarks.pareto")
    # The commits of all calls that added to these results.
    commits = list(dict.fromkeys([*earlier.get("provenance", {}).get("commits", []), made["commit"]]))
    write_json(arguments.results, content | {"provenance": made | {"commits": commits}})
    print(f"\nwritten to {arguments.results}")


if __name__ == "__main__":
    main()
