"""Does DMD lose diversity that its teacher has, and does DP-DMD keep it? Several training seeds, with intervals.

    python benchmarks/collapse.py --seeds 5 --updates 600 --jobs 2

Arms: the guided teacher at 30 steps, the same at 4 steps, DMD, DP-DMD with the paper's K = 5 and lambda = 0.05, DP-DMD
at our defaults. All students share budget, noise, prompts, guidance and learning rate; only the objective differs.
Resumable: finished runs stand in --out and are not repeated. Writes benchmarks/results/collapse.json and prints the
table of the README. Expect about --seeds x 3 x (updates x 2 s) of CPU time on one core.
"""

import argparse
import json
import math
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from scipy.stats import t as student_t

from dpdmd.compare import HEADLINE, Arm, run_arms, score_arms
from dpdmd.demo import FEW_STEPS
from dpdmd.files import write_json
from dpdmd.world.prompts import evaluation_prompts

FIGURES = (*HEADLINE, "coverage", "total_variation_true", "saturation")
NUM_IMAGES_PER_PROMPT = 16
TEACHERS = [Arm("teacher"), Arm("teacher_few_steps", sampling=("--num-inference-steps", str(FEW_STEPS)))]


def student_arms(seed: int, updates: int) -> list[Arm]:
    """The trained arms of one seed."""
    settings = {
        "train.seed": seed,
        "train.num_updates": updates,
        "validation.every": 0,
        "checkpoint.every": 100,
        "checkpoint.keep": 1,
    }
    paper = {"objective.anchor.steps": 5, "objective.anchor.weight": 0.05}
    return [
        Arm("dmd", "scenes_dmd", settings),
        Arm("dp_dmd_paper", "scenes_dp_dmd", settings | paper),
        Arm("dp_dmd", "scenes_dp_dmd", settings),
    ]


def run_all(out: Path, seeds: list[int], updates: int, jobs: int) -> None:
    """Train and sample everything, `jobs` runs side by side."""
    tasks = [(arm, out / "teachers" / arm.name) for arm in TEACHERS]
    tasks += [(arm, out / f"seed-{seed}" / arm.name) for seed in seeds for arm in student_arms(seed, updates)]
    run_arms(
        tasks,
        out / "prompts.txt",
        teacher="scenes",
        prompts=evaluation_prompts(),
        num_seeds=NUM_IMAGES_PER_PROMPT,
        jobs=jobs,
    )


def collect(out: Path, seeds: list[int], updates: int) -> dict[str, list[dict]]:
    """Per arm the metrics of every seed; a teacher, which is not trained, has one row."""
    rows: dict[str, list[dict]] = {}
    teachers = {arm.name: out / "teachers" / arm.name for arm in TEACHERS}
    for seed in seeds:
        students = {arm.name: out / f"seed-{seed}" / arm.name for arm in student_arms(seed, updates)}
        for name, row in score_arms(teachers | students).items():
            rows.setdefault(name, []).append(row)
    return {name: values[:1] if name.startswith("teacher") else values for name, values in rows.items()}


def summarise(values: list[float]) -> dict[str, float | list[float]]:
    """Mean over seeds with the 95 % interval of Student's t, and the values themselves."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return {"mean": mean, "values": values}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def markdown(arms: dict[str, dict]) -> str:
    """The README's table."""

    def cell(figure: dict) -> str:
        half = f" ± {(figure['high'] - figure['low']) / 2:.3f}" if "high" in figure else ""
        return f"{figure['mean']:.3f}{half}"

    lines = [f"| arm | {' | '.join(name.replace('_', ' ') for name in FIGURES)} | seconds |"]
    lines.append("|---" * (len(FIGURES) + 2) + "|")
    for name, arm in arms.items():
        cells = [cell(arm[figure]) if figure in arm else "-" for figure in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {arm['seconds']['mean']:.0f} |")
    return "\n".join(lines)


def provenance(arguments: argparse.Namespace) -> dict:
    """What to know to repeat the numbers."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ("dpdmd", "torch", "diffusers", "transformers", "accelerate")
    return {
        "command": f"python benchmarks/collapse.py --seeds {arguments.seeds} --updates {arguments.updates} "
        f"--jobs {arguments.jobs}",
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 0 ... N-1")
    parser.add_argument("--updates", type=int, default=600, help="student updates of every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/collapse.json"))
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    run_all(arguments.out, seeds, arguments.updates, arguments.jobs)
    rows = collect(arguments.out, seeds, arguments.updates)
    arms = {}
    for name, values in rows.items():
        figures = {key for key in (*FIGURES, "seconds", "peak_memory_bytes") if values[0].get(key) is not None}
        arms[name] = {key: summarise([row[key] for row in values]) for key in sorted(figures)}
    write_json(arguments.results, {"arms": arms, "provenance": provenance(arguments)})
    print(markdown(arms), f"\n\nwritten to {arguments.results}")
    print(json.dumps(provenance(arguments), indent=2))


if __name__ == "__main__":
    main()
