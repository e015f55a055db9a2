"""Which figure, from a model alone and 16 pictures, says during training how good a student is?

    python -m benchmarks.in_run_quality            about half an hour on one core

Short runs of different objectives, learning rates, kinds and lengths are looked at every ten updates, and each look is
one student. It draws the 16 pictures that validation draws (four training prompts, four seeds), from which every
candidate is computed, and 24 other prompts x 16 seeds, whose share of clean scenes, Frechet distance to the teacher at
other seeds and share of the teacher's diversity are exact. The tables have Spearman's rank correlation of each
candidate with these, such that 1 is perfect. Intervals are 95 % percentiles over resampled runs, since the students of
one run are not independent.

An interrupted command can be run again: what is finished in --out is not repeated. Writes
benchmarks/results/in_run_quality.json and prints tables.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from benchmarks.in_run_students import COURSES, NUM_SEEDS, TAUS, collect
from benchmarks.pareto_page import markdown
from dpdmd.evaluate.diversity import pairwise_distance, pairwise_diversity
from dpdmd.method.denoiser import Condition
from dpdmd.method.guidance import Guidance
from dpdmd.method.randomness import draw_noise, generator
from dpdmd.method.residual import denoised, residual
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import network_denoiser
from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import surroundings
from dpdmd.store.tensors import read_tensors
from dpdmd.training.validation.images import default_prompts
from dpdmd.world.prompts import training_prompts

GUIDANCE, NUM_RESAMPLES = 3.5, 500
WORLDS = {"flow": "scenes", "noise": "scenes_eps"}
# What each candidate is compared with, and whether more of it is better.
QUALITY = {"validity": True, "frechet": False}
DIVERSITY = {"diversity_share": True, "effective_modes_mean": True}


@dataclass(frozen=True)
class Student:
    """One look: its run, its candidates (more is better) and its exact scores."""

    course: str
    quality: dict[str, float]
    diversity: dict[str, float]
    exact: dict[str, float]

    @property
    def world(self) -> str:
        """The group of its teacher."""
        return self.course.partition("_")[0]


@dataclass(frozen=True)
class Teacher:
    """A teacher with the conditioning of the 16 pictures, with guidance and without."""

    guided: GuidedTeacher
    plain: GuidedTeacher
    cond: Condition
    uncond: Condition


@cache
def teacher_of(name: str) -> Teacher:
    """A built-in teacher."""
    adapter = load_adapter(name)
    denoise = network_denoiser(adapter, adapter.load_network().eval(), adapter.embedded_guidance)
    grid, prompts = adapter.stock_grid(2), default_prompts(training_prompts())
    rows = torch.arange(len(prompts)).repeat_interleave(NUM_SEEDS)
    guided, plain = (
        GuidedTeacher(denoise, adapter.path, grid, Guidance(scale, adapter.guidance_rule)) for scale in (GUIDANCE, 1.0)
    )
    return Teacher(guided, plain, adapter.encode(prompts)[rows], adapter.encode([""]).expand(len(rows)))


def seen(teacher: Teacher, x0: Tensor) -> dict[str, Tensor]:
    """What the teacher makes of pictures at every noise level, guided and, at 0.3, without guidance."""
    seeds = list(range(NUM_SEEDS)) * (len(x0) // NUM_SEEDS)
    noise = draw_noise([generator(seed, "residual") for seed in seeds], (x0.shape[1], x0.shape[2], x0.shape[3]))
    found = {f"{tau}": denoised(teacher.guided, x0, noise, teacher.cond, teacher.uncond, tau=tau) for tau in TAUS}
    return found | {"plain": denoised(teacher.plain, x0, noise, teacher.cond, teacher.uncond, tau=0.3)}


def energy_distance(features: Tensor, reference: Tensor) -> Tensor:
    """How far the samples of each prompt are from the reference's of the same prompt and seeds.

        2 mean_{i != j} |x_i - y_j| - mean_{i != j} |x_i - x_j| - mean_{i != j} |y_i - y_j|

    0 for equal distributions, on average over few samples as well, which may make it slightly negative. Pairs of one
    seed are left out: they have their noise in common. features, reference: (P, R, D). Returns (P,) fp64.
    Raises ValueError for other shapes and for R < 2. Source: Szekely and Rizzo 2013, "Energy statistics".
    """
    if features.ndim != 3 or features.shape != reference.shape or features.shape[1] < 2:
        raise ValueError(
            "both sets must be (prompts, samples, dimensions) with at least two samples, got "
            f"{tuple(features.shape)} and {tuple(reference.shape)}"
        )
    x, y, number = features.double(), reference.double(), features.shape[1]

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return (distance.sum((1, 2)) - distance.diagonal(dim1=1, dim2=2).sum(1)) / (number * (number - 1))

    return 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)


def candidates(teacher: Teacher, x0: Tensor, of_teacher: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """The candidates of quality and of diversity for the pictures x0 (P * R, C, H, W), from their latents alone."""
    ours, theirs = seen(teacher, x0), seen(teacher, of_teacher)

    def share(tau: str) -> float:
        return float(residual(of_teacher, theirs[tau]).mean() / residual(x0, ours[tau]).mean())

    def absolute(tau: str) -> float:
        return float((of_teacher - theirs[tau]).abs().mean() / (x0 - ours[tau]).abs().mean())

    def per_prompt(latents: Tensor) -> Tensor:
        return latents.flatten(1).unflatten(0, (-1, NUM_SEEDS))

    quality = {f"residual at {tau}": share(str(tau)) for tau in TAUS}
    quality |= {
        "residual at 0.3, unguided": share("plain"),
        "residual at 0.3, absolute": absolute("0.3"),
        "residual at 0.1 and 0.3, absolute": absolute("0.1") * absolute("0.3"),
        "distance from the teacher's pictures of the same noise": -float((x0 - of_teacher).abs().mean()),
        "energy distance of latents": -float(energy_distance(per_prompt(x0), per_prompt(of_teacher)).mean()),
        "energy distance of denoised latents": -float(
            energy_distance(per_prompt(ours["0.3"]), per_prompt(theirs["0.3"])).mean()
        ),
    }
    pairs = {
        "latents": (x0, of_teacher),
        "latents of half the size": (F.avg_pool2d(x0, 2), F.avg_pool2d(of_teacher, 2)),
        **{f"latents denoised at {tau}": (ours[str(tau)], theirs[str(tau)]) for tau in (0.3, 0.5)},
    }
    diversity = {
        f"distance of {name}": float(pairwise_distance(per_prompt(a)).sum() / pairwise_distance(per_prompt(b)).sum())
        for name, (a, b) in pairs.items()
    }
    a, b = (pairwise_diversity(per_prompt(latents)).sum() for latents in pairs["latents"])
    return quality, diversity | {"cosine of latents": float(a / b)}


def read_students(out: Path) -> list[Student]:
    """The students of all finished courses."""
    found = []
    for course in COURSES:
        if not (out / course.name / "done.json").is_file():
            continue
        name = WORLDS[course.name.partition("_")[0]]
        of_teacher = read_tensors(out / f"{name}.safetensors")["few"]
        for path in sorted((out / course.name).glob("step-*.json")):
            row = read_json(path)
            x0 = read_tensors(path.with_suffix(".safetensors"))["few"]
            quality, diversity = candidates(teacher_of(name), x0, of_teacher)
            at_16, gaps = row["at_16"], row["gaps"]
            quality |= {f"gap between teacher and fake score at {tau}": -gaps[str(tau)] for tau in (0.3, 0.5)}
            quality |= {
                "with a network: precision": at_16["precision"],
                "with a network: Frechet": -at_16["frechet"],
                "with the oracle: clean share": at_16["validity"],
            }
            diversity |= {"with a network: share": at_16["diversity_share"]}
            found.append(Student(course.name, quality, diversity, row["exact"]))
    return found


def by_teacher(students: list[Student], kind: str, candidate: str, metric: str, better: bool) -> dict[str, float]:
    """Spearman's rank correlation over the students of each teacher."""
    rhos = {}
    for world in WORLDS:
        rows = [student for student in students if student.world == world]
        values = [getattr(student, kind)[candidate] for student in rows]
        exact = [student.exact[metric] for student in rows]
        # A candidate that is the same for all tells nothing.
        informs = len(set(values)) > 1 and len(set(exact)) > 1
        rhos[world] = float(spearmanr(values, exact).statistic) * (1 if better else -1) if informs else 0.0
    return rhos


def resampled(students: list[Student], rng: np.random.Generator) -> list[Student]:
    """The students of runs drawn with replacement, as many as there are of each teacher."""
    by_course: dict[str, dict[str, list[Student]]] = defaultdict(lambda: defaultdict(list))
    for student in students:
        by_course[student.world][student.course].append(student)
    return [
        student
        for courses in by_course.values()
        for index in rng.integers(len(courses), size=len(courses))
        for student in list(courses.values())[index]
    ]


def correlations(students: list[Student], kind: str, metrics: dict[str, bool]) -> dict[str, dict[str, dict]]:
    """{candidate: {metric: {"rho", "interval", and of each teacher}}}."""
    rng = np.random.default_rng(0)
    resamples = [resampled(students, rng) for _ in range(NUM_RESAMPLES)]
    found: dict[str, dict[str, dict]] = {}
    for candidate in getattr(students[0], kind):
        found[candidate] = {}
        for metric, better in metrics.items():
            rhos = [mean(by_teacher(sample, kind, candidate, metric, better).values()) for sample in resamples]
            each = by_teacher(students, kind, candidate, metric, better)
            interval = np.quantile(rhos, [0.025, 0.975]).tolist()
            found[candidate][metric] = {"rho": mean(each.values()), "interval": interval, **each}
    return found


def table(found: dict[str, dict[str, dict]]) -> str:
    """Candidates by what they are compared with, the highest first."""
    metrics = list(next(iter(found.values())))
    order = sorted(found, key=lambda name: -found[name][metrics[0]]["rho"])
    cells = [
        [name, *(f"{r['rho']:.2f} [{r['interval'][0]:.2f}, {r['interval'][1]:.2f}]" for r in found[name].values())]
        for name in order
    ]
    return markdown(["candidate", *metrics], cells)


def main() -> None:
    """Train, look, correlate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "in_run_quality"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "in_run_quality.json"))
    arguments = parser.parse_args()
    for course in COURSES:
        collect(course, arguments.out / course.name)
    students = read_students(arguments.out)
    quality, diversity = (
        correlations(students, kind, metrics) for kind, metrics in (("quality", QUALITY), ("diversity", DIVERSITY))
    )
    numbers = {world: sum(student.world == world for student in students) for world in WORLDS}
    content = {"num_students": numbers, "quality": quality, "diversity": diversity}
    content |= {"students": [vars(student) for student in students]}
    write_json(arguments.results, content | {"provenance": surroundings("python -m benchmarks.in_run_quality")})
    print(f"{numbers}\n\n{table(quality)}\n\n{table(diversity)}\n\nwritten to {arguments.results}")


if __name__ == "__main__":
    main()
