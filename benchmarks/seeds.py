"""Students of several training seeds side by side, each seed's against the same teacher, means with intervals."""

import argparse
import math
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from scipy.stats import t as student_t

from dpdmd.compare import HEADLINE, Arm, run_arms, score_arms
from dpdmd.files import write_json
from dpdmd.world.prompts import evaluation_prompts

FIGURES = (*HEADLINE, "coverage", "total_variation_true", "saturation")
NUM_IMAGES_PER_PROMPT = 16


def run_benchmark(
    script: str,
    description: str,
    *,
    teacher: str,
    teachers: list[Arm],
    students: Callable[[dict], list[Arm]],
    updates: int,
) -> None:
    """Parse the command line, train, sample and score all arms, write the results and print the table.

    students: from the settings that all of them share (seed, number of updates) to the arms of one seed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 0 ... N-1")
    parser.add_argument("--updates", type=int, default=updates, help="student updates of every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", script))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", f"{script}.json"))
    arguments = parser.parse_args()
    out, seeds = arguments.out, range(arguments.seeds)

    def arms_of(seed: int) -> list[Arm]:
        settings = {
            "train.seed": seed,
            "train.num_updates": arguments.updates,
            "validation.every": 0,
            "checkpoint.every": 100,
            "checkpoint.keep": 1,
        }
        return students(settings)

    places = {arm.name: out / "teachers" / arm.name for arm in teachers}
    tasks = [(arm, places[arm.name]) for arm in teachers]
    tasks += [(arm, out / f"seed-{seed}" / arm.name) for seed in seeds for arm in arms_of(seed)]
    prompts = evaluation_prompts()
    run_arms(
        tasks,
        out / "prompts.txt",
        teacher=teacher,
        prompts=prompts,
        num_seeds=NUM_IMAGES_PER_PROMPT,
        jobs=arguments.jobs,
    )
    rows: dict[str, list[dict]] = {}
    for seed in seeds:
        folders = places | {arm.name: out / f"seed-{seed}" / arm.name for arm in arms_of(seed)}
        for name, row in score_arms(folders).items():
            rows.setdefault(name, []).append(row)
    arms = {name: _summary(values[:1] if name in places else values) for name, values in rows.items()}
    command = (
        f"python -m benchmarks.{script} --seeds {len(seeds)} --updates {arguments.updates} --jobs {arguments.jobs}"
    )
    write_json(arguments.results, {"arms": arms, "provenance": _provenance(command)})
    print(f"{markdown(arms)}\n\nwritten to {arguments.results}")


def summarise(values: list[float]) -> dict[str, float | list[float]]:
    """Mean over seeds with the 95 % interval of Student's t, and the values themselves."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return {"mean": mean, "values": values}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def markdown(arms: dict[str, dict]) -> str:
    """The table of all figures, one arm a row."""

    def cell(figure: dict) -> str:
        half = f" ± {(figure['high'] - figure['low']) / 2:.3f}" if "high" in figure else ""
        return f"{figure['mean']:.3f}{half}"

    lines = [f"| arm | {' | '.join(name.replace('_', ' ') for name in FIGURES)} | seconds |"]
    lines.append("|---" * (len(FIGURES) + 2) + "|")
    for name, arm in arms.items():
        cells = [cell(arm[figure]) if figure in arm else "-" for figure in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {arm['seconds']['mean']:.0f} |")
    return "\n".join(lines)


def _summary(rows: list[dict]) -> dict[str, dict]:
    figures = {key for key in (*FIGURES, "seconds", "peak_memory_bytes") if rows[0].get(key) is not None}
    return {key: summarise([row[key] for row in rows]) for key in sorted(figures)}


def _provenance(command: str) -> dict:
    """What to know to repeat the numbers."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ("dpdmd", "torch", "diffusers", "transformers", "accelerate")
    return {
        "command": command,
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
    }
