"""What evaluation costs beside training: seconds of the commands that a user types, each in a process of its own.

    python -m benchmarks.evaluation            some minutes on one quiet core

The student of the recipe `scenes_dp_dmd` draws 24 prompts x 16 images, which are compared with its teacher's images of
the same prompts and seeds. In each turn the student is trained, its images are drawn and scored, with the caches empty;
the teacher's images, which all of its students share, are drawn once. Writes benchmarks/results/evaluation.json and
prints each command's share of the training, the mean over turns with its range.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dpdmd.store.files import write_json, write_text
from dpdmd.store.provenance import surroundings
from dpdmd.world.prompts import evaluation_prompts

RECIPE, IMAGES_PER_PROMPT = "scenes_dp_dmd", 16
RESULTS = Path("benchmarks", "results", "evaluation.json")


def seconds(*arguments: str | Path, cache: Path) -> float:
    """Wall time of `dpdmd ARGUMENTS`, start of the process included. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    environment = os.environ | {"DPDMD_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "dpdmd", *map(str, arguments)], check=True, env=environment)
    return time.perf_counter() - started


def turn(folder: Path, teacher: Path, drawing: list[str | Path]) -> dict[str, float]:
    """Seconds of the commands that train a student, draw its images and score them."""
    run, images, cache = folder / "run", folder / "images", folder / "cache"
    overrides = [f"output.folder={run}", f"data.cache={cache}", "validation.every=0"]
    sets = [part for override in overrides for part in ("--set", override)]
    return {
        "train": seconds("train", RECIPE, *sets, cache=cache),
        "sample": seconds("sample", run, *drawing, "--out", images, cache=cache),
        "evaluate": seconds("evaluate", images, "--reference", teacher, "--out", folder / "metrics.json", cache=cache),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_text(work / "prompts.txt", "\n".join(evaluation_prompts()) + "\n")
        drawing = [
            "--prompts",
            work / "prompts.txt",
            "--images-per-prompt",
            str(IMAGES_PER_PROMPT),
            "--batch-size",
            "64",
        ]
        teacher = work / "teacher"
        of_teacher = seconds("sample", "scenes", *drawing, "--out", teacher, cache=work / "cache")
        turns = [turn(work / str(i), teacher, drawing) for i in range(arguments.turns)]
    shares = {
        "drawing": [turn["sample"] / turn["train"] for turn in turns],
        "scoring": [turn["evaluate"] / turn["train"] for turn in turns],
        "both": [(turn["sample"] + turn["evaluate"]) / turn["train"] for turn in turns],
    }
    found = {"teacher_images": of_teacher, "turns": turns, "shares_of_training": shares}
    write_json(arguments.json, found | {"provenance": surroundings("python -m benchmarks.evaluation")})
    for what, values in shares.items():
        print(f"{what}: {sum(values) / len(values):.3f} of training ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
