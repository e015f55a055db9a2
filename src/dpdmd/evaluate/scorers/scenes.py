"""The exact metrics of the built-in world, from what its oracle reads in the images."""

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from dpdmd.evaluate.intervals import Estimate, mean_estimate, ratio_estimate
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores

if TYPE_CHECKING:
    from dpdmd.world.oracle import Reading


@dataclass(frozen=True)
class PromptReading:
    """What the oracle read in the images of one prompt.

    num_right: how many named factors were drawn right, of num_named. free_entropy: entropy in nats of a factor that the
    prompt leaves open, among valid images and averaged over factors; None with fewer than two valid images.
    """

    num_right: int
    num_named: int
    free_entropy: float | None


def is_world(samples: Samples) -> bool:
    """Whether every prompt is a caption of the built-in world and every image has its size."""
    from dpdmd.world.scenes import IMAGE_SIZE

    if not _captions().issuperset(samples.prompts):
        return False
    return all(image.shape == (3, IMAGE_SIZE, IMAGE_SIZE) for image in samples.images())


@cache
def _captions() -> frozenset[str]:
    from dpdmd.world.captions import all_captions

    return frozenset(all_captions())


def scene_scores(samples: Samples, teacher: Samples | None) -> Scores:
    """The exact metrics of the built-in world; see `world.metrics.scene_metrics`.

    "named_accuracy", "validity"; "effective_modes", exp of the entropy of what a prompt leaves open in its valid images
    (averaged over factors and prompts); "effective_modes_mean", the same divided by what exact sampling gives;
    "total_variation_true", "..._floor" and "..._reference", averaged over factors; each of them "..._by_factor" too;
    and "spread" of the continuous factors.
    Raises ValueError for images that do not have the size of the built-in world.
    """
    from dpdmd.world.metrics import scene_metrics
    from dpdmd.world.oracle import read_scenes

    num = samples.images_per_prompt
    reading = read_scenes(torch.stack(list(samples.images())))
    reference = None if teacher is None else read_scenes(torch.stack(list(teacher.images())))
    exact = scene_metrics(samples.repeated_prompts, reading, reference=reference)
    values: dict[str, Any] = {}
    for key in ("total_variation_true", "total_variation_floor", "total_variation_reference"):
        if key in exact:
            by_factor = [value for value in exact[key].values() if value is not None]
            values[key] = sum(by_factor) / len(by_factor) if by_factor else None
            values[f"{key}_by_factor"] = exact[key]
    values |= {key: exact[key] for key in ("named_accuracy_by_factor", "spread", "spread_true")}
    values["effective_modes_by_factor"] = exact["effective_modes"]
    values["effective_modes_exact_by_factor"] = exact["effective_modes_exact"]
    values["effective_modes_mean"] = exact["effective_modes_mean"]

    readings = [_prompt_reading(prompt, reading[i * num : (i + 1) * num]) for i, prompt in enumerate(samples.prompts)]
    rows = [
        {
            "named_accuracy": row.num_right / row.num_named,
            "validity": float(reading.valid[i * num : (i + 1) * num].double().mean()),
            "effective_modes": None if row.free_entropy is None else math.exp(row.free_entropy),
        }
        for i, row in enumerate(readings)
    ]
    estimates = {
        "named_accuracy": ratio_estimate([row.num_right for row in readings], [row.num_named for row in readings]),
        "validity": mean_estimate([row["validity"] for row in rows]),
    }
    free = [row.free_entropy for row in readings if row.free_entropy is not None]
    if free:
        estimates["effective_modes"] = _exponential(mean_estimate(free))
    return Scores(estimates, values, rows)


def _prompt_reading(prompt: str, reading: "Reading") -> PromptReading:
    from dpdmd.world.captions import named_factors
    from dpdmd.world.metrics import DEPENDS_ON, entropy
    from dpdmd.world.scenes import DISCRETE_FACTORS

    named, valid = named_factors(prompt), reading.valid
    right, entropies = 0, []
    for factor, values in DISCRETE_FACTORS.items():
        read = reading.scenes.discrete[factor]
        if factor in named:
            right += int((read == values.index(named[factor])).sum())
        elif factor in DEPENDS_ON and int(valid.sum()) >= 2:
            entropies.append(float(entropy(torch.bincount(read[valid], minlength=len(values)))))
    return PromptReading(right, len(named) * len(valid), sum(entropies) / len(entropies) if entropies else None)


def _exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate; percentiles are carried over by any rising function."""
    low, high = (None if bound is None else math.exp(bound) for bound in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high, estimate.n)
