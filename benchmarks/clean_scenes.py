"""Why do DP-DMD's students draw fewer clean scenes than DMD's: harder scenes, or the same scenes drawn worse?

    python -m benchmarks.clean_scenes --seeds 3 --jobs 2

A cell is a combination of the shape, size and background that the oracle reads. The difference between two models'
shares of clean scenes is decomposed over these cells into two parts: which scenes they draw, and how well they draw the
same ones. The main arms and the teacher are those of benchmarks.pareto and share its folder; runs that are finished
there are not repeated. Images are pooled over training seeds.

Writes benchmarks/results/clean_scenes.json and prints tables.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.pareto import GUIDANCE, HYBRIDS, hybrids, main_arms, teacher_arm
from benchmarks.pareto_page import LABELS, OURS, RIVAL, markdown
from dpdmd.compare.arms import REFERENCE, Run, arrange
from dpdmd.compare.commands import run_all
from dpdmd.evaluate.samples import read_samples
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.captions import named_factors
from dpdmd.world.oracle import read_scenes
from dpdmd.world.prompts import evaluation_prompts
from dpdmd.world.scenes import DISCRETE_FACTORS

OTHERS = (RIVAL, HYBRIDS[OURS], REFERENCE)

Cells = dict[tuple[str, ...], list[bool]]


def read_cells(runs: list[Run]) -> Cells:
    """{cell (shape, size, background): whether each of its images is a clean scene}."""
    cells: Cells = defaultdict(list)
    for run in runs:
        samples = read_samples(run.folder / "samples")
        reading = read_scenes(torch.stack(list(samples.images())))
        for i, prompt in enumerate(samples.repeated_prompts):
            read = {
                name: DISCRETE_FACTORS[name][int(reading.scenes.discrete[name][i])] for name in ("size", "background")
            }
            cells[named_factors(prompt)["shape"], read["size"], read["background"]].append(bool(reading.valid[i]))
    return cells


def decompose(a: Cells, b: Cells) -> dict[str, float]:
    """The difference of two shares, a - b, over the cells that both have, in two parts that add up to it.

    With w a cell's share of the images, and r the share of its images that are clean:

        composition = sum (w_a - w_b) (r_a + r_b) / 2        rate = sum (w_a + w_b) / 2 (r_a - r_b)

    "common": the share of images in such cells, the smaller one of a and b.
    Source: Kitagawa 1955, "Components of a difference between two rates".
    Raises ValueError when no cell is common to both.
    """
    both = [cell for cell in a if a[cell] and b.get(cell)]
    if not both:
        raise ValueError("no cell has images of both")
    weights, rates, common = [], [], []
    for cells in (a, b):
        total = sum(len(cells[cell]) for cell in both)
        weights.append([len(cells[cell]) / total for cell in both])
        rates.append([sum(cells[cell]) / len(cells[cell]) for cell in both])
        common.append(total / sum(map(len, cells.values())))
    parts = list(zip(*weights, *rates, strict=True))
    return {
        "difference": sum(wa * ra - wb * rb for wa, wb, ra, rb in parts),
        "composition": sum((wa - wb) * (ra + rb) / 2 for wa, wb, ra, rb in parts),
        "rate": sum((wa + wb) / 2 * (ra - rb) for wa, wb, ra, rb in parts),
        "common": min(common),
    }


def by(cells: Cells, *places: int) -> Cells:
    """Coarser cells, by some of the factors only."""
    coarse: Cells = defaultdict(list)
    for cell, images in cells.items():
        coarse[tuple(cell[i] for i in places)] += images
    return coarse


def share(images: list[bool]) -> str:
    """The share of clean images as a table cell, with the number of images."""
    return f"{sum(images) / len(images):.3f} ({len(images)})" if images else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of training seeds, 0 ... N-1")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs; each gets a share of the cores")
    parser.add_argument("--out", type=Path, default=Path("runs", "pareto"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "clean_scenes.json"))
    arguments = parser.parse_args()
    how = {"prompts": evaluation_prompts(), "images_per_prompt": 16, "jobs": arguments.jobs}
    arms = [arm for arm in main_arms() if arm.name in (OURS, RIVAL)]
    teacher = arrange(arguments.out, [teacher_arm(GUIDANCE)], [], [])
    students = arrange(arguments.out, [], arms, list(range(arguments.seeds)))
    run_all([*teacher, *students], arguments.out, **how)
    run_all(hybrids(students), arguments.out, **how)

    runs: dict[str, list[Run]] = defaultdict(list)
    for run in [*teacher, *students, *hybrids(students)]:
        runs[run.arm.name].append(run)
    cells = {name: read_cells(runs[name]) for name in (OURS, *OTHERS)}
    parts = {name: decompose(cells[OURS], cells[name]) for name in OTHERS}
    places = sorted(by(cells[OURS], 0, 1))
    shares = [[" ".join(reversed(place)), *(share(by(own, 0, 1)[place]) for own in cells.values())] for place in places]
    print(markdown(["clean scenes (images)", *(LABELS[name] for name in cells)], shares))
    rows = [[LABELS[name], *(f"{value:z.3f}" for value in part.values())] for name, part in parts.items()]
    print(f"\n{markdown(['DP-DMD minus', *parts[RIVAL]], rows)}")
    found = {
        name: [{"cell": cell, "images": len(images), "clean": sum(images)} for cell, images in sorted(own.items())]
        for name, own in cells.items()
    }
    made = surroundings(f"python -m benchmarks.clean_scenes --seeds {arguments.seeds}")
    write_json(arguments.results, {"cells": found, "less": parts, "provenance": made})
    print(f"\nwritten to {arguments.results}")


if __name__ == "__main__":
    main()
