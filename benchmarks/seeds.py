"""Compare students of several training seeds with one teacher: means with intervals over the seeds."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dpdmd.compare.arms import Arm, arrange
from dpdmd.compare.engine import run_and_measure
from dpdmd.compare.summary import summarise_arms, table
from dpdmd.evaluate.metrics import HEADLINE
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.prompts import evaluation_prompts

# Keys of the metrics in the tables that benchmarks print.
SHOWN = (*HEADLINE, "coverage", "total_variation_true", "saturation")


def run_benchmark(
    script: str, description: str, *, teachers: list[Arm], students: Callable[[dict], list[Arm]], updates: int
) -> None:
    """Parse the command line, train, sample and score all arms, write the results and print the table.

    students: makes the arms from the settings that all of them share; the seed is added to these.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 0 ... N-1")
    parser.add_argument("--updates", type=int, default=updates, help="student updates of every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", script))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", f"{script}.json"))
    arguments = parser.parse_args()
    settings = {
        "train.num_updates": arguments.updates,
        "validation.every": 0,
        "checkpoint.every": 100,
        "checkpoint.keep": 1,
    }
    runs = arrange(arguments.out, teachers, students(settings), list(range(arguments.seeds)))
    rows = run_and_measure(runs, arguments.out, prompts=evaluation_prompts(), jobs=arguments.jobs)
    arms = summarise_arms(runs, rows)
    command = f"python -m benchmarks.{script} --seeds {arguments.seeds} --updates {arguments.updates}"
    write_json(arguments.results, {"arms": arms, "provenance": surroundings(f"{command} --jobs {arguments.jobs}")})
    print(f"{table(arms, SHOWN)}\n\nwritten to {arguments.results}")
