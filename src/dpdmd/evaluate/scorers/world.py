"""The exact metrics of a built-in world, from what its oracle reads in the images."""

import math
from typing import TYPE_CHECKING

import torch

from dpdmd.evaluate.intervals import Estimate, mean_estimate, ratio_estimate
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores

if TYPE_CHECKING:
    from dpdmd.world.base import World


def world_of(samples: Samples) -> "World | None":
    """The built-in world whose captions all prompts are and whose size all images have; None if there is none."""
    from dpdmd.world.find import world_of_images

    return world_of_images(samples.prompts, (image.shape for image in samples.images()))


def world_scores(world: "World", samples: Samples, teacher: Samples | None) -> Scores:
    """The exact metrics of a built-in world.

    "named_accuracy", "validity"; "effective_modes", exp of the entropy of what a prompt leaves open in its valid images
    (averaged over prompts); and the world's own values, among them "effective_modes_mean", the same divided by what
    exact sampling gives, and "total_variation_true", "..._floor" and, with a teacher, "..._reference".
    Raises ValueError for images that do not have the world's size.
    """
    reference = None if teacher is None else torch.stack(list(teacher.images()))
    reading = world.read(samples.prompts, torch.stack(list(samples.images())), reference)
    rows = [
        {
            "named_accuracy": row.num_right / row.num_named,
            "validity": row.validity,
            "effective_modes": None if row.free_entropy is None else math.exp(row.free_entropy),
        }
        for row in reading.per_prompt
    ]
    estimates = {
        "named_accuracy": ratio_estimate(
            [row.num_right for row in reading.per_prompt], [row.num_named for row in reading.per_prompt]
        ),
        "validity": mean_estimate([row["validity"] for row in rows]),
    }
    free = [row.free_entropy for row in reading.per_prompt if row.free_entropy is not None]
    if free:
        estimates["effective_modes"] = _exponential(mean_estimate(free))
    return Scores(estimates, reading.values, rows)


def _exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate; percentiles are carried over by any rising function."""
    low, high = (None if bound is None else math.exp(bound) for bound in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high, estimate.n)
