"""Exact metrics of the built-in world: the oracle's readings compared with the world's own conditional distributions.

Every metric comes with the value that exact sampling would give (`*_true`, or `*_floor` and `*_exact` where it depends
on the number of images), so that a small sample cannot be mistaken for a loss of diversity.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor

from dpdmd.world.captions import NAMEABLE_FACTORS, named_factors
from dpdmd.world.oracle import Reading
from dpdmd.world.scenes import (
    CONTINUOUS_FACTORS,
    DISCRETE_FACTORS,
    ROTATION_RANGE,
    SHAPES,
    SIDES,
    SIZES,
    Y_RANGE,
    conditional_probability,
)
from dpdmd.world.statistics import entropy, expected_entropy, total_variation, total_variation_floor

# The factors that a prompt may leave free, each with the factor on which its distribution depends.
DEPENDS_ON = {"colour": "background", "background": "colour", "size": None, "side": "shape"}


def named_accuracy(prompts: list[str], reading: Reading) -> dict[str, float | None]:
    """Share of the factors named by the prompts that the images show, over all factors ("all") and per factor.

    An invalid image counts with the factors that the oracle read in it. None: no prompt names the factor.
    """
    right = {factor: [] for factor in NAMEABLE_FACTORS}
    for i, prompt in enumerate(prompts):
        for factor, value in named_factors(prompt).items():
            right[factor].append(DISCRETE_FACTORS[factor][int(reading.scenes.discrete[factor][i])] == value)
    everything = [hit for hits in right.values() for hit in hits]
    return {name: sum(hits) / len(hits) if hits else None for name, hits in {"all": everything, **right}.items()}


def effective_modes(prompts: list[str], reading: Reading) -> dict[str, dict[str, float | None]]:
    """Effective number of modes of each free factor among the valid images of a prompt.

    Returns for each factor
        "measured": exp(mean over prompts of `entropy`), clipped to [1, number of values];
        "exact": the same quantity for exact sampling with the same numbers of images;
        "true": its limit for many images.
    The mean is over prompts that leave the factor free and have at least two valid images; None if there is no such
    prompt. Entropies are averaged (a geometric mean over prompts) because the exponential of a single estimate is
    biased.
    """
    rows = _valid_rows(prompts, reading)
    out = {}
    for factor, values in DISCRETE_FACTORS.items():
        if factor not in DEPENDS_ON:
            continue
        measured, exact, true = [], [], []
        for prompt, index in rows.items():
            named = named_factors(prompt)
            if factor in named or len(index) < 2:
                continue
            probability = conditional_probability(factor, named).double()
            measured.append(float(entropy(_counts(reading, factor, index))))
            exact.append(expected_entropy(probability, len(index)))
            true.append(-float(torch.xlogy(probability, probability).sum()))
        means = {"measured": measured, "exact": exact, "true": true}
        out[factor] = {
            name: min(max(math.exp(sum(part) / len(part)), 1.0), float(len(values))) if part else None
            for name, part in means.items()
        }
    return out


def total_variation_by_condition(
    prompts: list[str], reading: Reading, reference: Reading | None = None
) -> dict[str, dict[str, float | None]]:
    """Total variation between the distribution of each free factor and the truth, and optionally a reference.

    Valid images are pooled over all prompts that share the factor on which the free one depends (DEPENDS_ON), because
    the total variation of few samples is mostly noise. Conditions are averaged with their image counts as weights.

    Returns for each factor
        "true": the distance to the world's conditional distribution;
        "floor": the expected distance of exact samples of the same size;
        "reference": the distance to the reading of another model's images of the same prompts (if given), over the
            conditions that both have, biased upwards by the sampling noise of both.
    None: no image counts for the factor.
    """
    out = {}
    for factor in DEPENDS_ON:
        counts = _counts_by_condition(prompts, reading, factor)
        truth = {key: conditional_probability(factor, dict(key)) for key in counts}
        sizes = {key: int(count.sum()) for key, count in counts.items()}
        row = {
            "true": _weighted({key: float(total_variation(counts[key], truth[key])) for key in counts}, sizes),
            "floor": _weighted({key: total_variation_floor(truth[key], sizes[key]) for key in counts}, sizes),
        }
        if reference is not None:
            others = _counts_by_condition(prompts, reference, factor)
            shared = {key: float(total_variation(counts[key], others[key])) for key in counts if key in others}
            row["reference"] = _weighted(shared, sizes)
        out[factor] = row
    return out


def spread(prompts: list[str], reading: Reading) -> dict[str, dict[str, float | None]]:
    """Within-prompt standard deviation of the continuous factors among valid images, in pixels (rotation: degrees).

    It is the root of the mean over prompts of the unbiased variance; a mean of standard deviations would depend on the
    number of images. Returns for each factor "measured" and, for the same prompts, "true". Prompts with fewer than two
    valid images do not count; circles, which have no rotation, do not count for the rotation. None: no prompt counts.
    """
    rows = _valid_rows(prompts, reading)
    out = {}
    for factor in CONTINUOUS_FACTORS:
        measured, true = [], []
        for prompt, index in rows.items():
            if factor == "rotation":
                index = index[reading.scenes.discrete["shape"][index] != SHAPES.index("circle")]
            if len(index) >= 2:
                measured.append(float(reading.scenes.continuous[factor][index].double().var()))
                true.append(_true_variance(factor, named_factors(prompt)))
        out[factor] = {
            name: math.sqrt(sum(part) / len(part)) if part else None
            for name, part in (("measured", measured), ("true", true))
        }
    return out


def scene_metrics(prompts: list[str], reading: Reading, *, reference: Reading | None = None) -> dict:
    """Compute all exact metrics of generated images, as a plain dict of numbers that can be written as JSON.

    prompts: one per image; repeat a prompt for each of its images.
    reading: of the images, by `read_scenes`.
    reference: of another model's images of the same prompts, usually the teacher's.

    Returns
        num_images, num_prompts;
        validity: share of images that are a clean scene;
        named_accuracy, named_accuracy_by_factor: shares, see `named_accuracy`;
        effective_modes, effective_modes_exact, effective_modes_true: per factor, see `effective_modes`;
        effective_modes_mean: geometric mean over factors of measured / exact; 1 means as diverse as exact sampling of
            as many images, less than 1 means that modes were lost;
        total_variation_true, total_variation_floor and, with a reference, total_variation_reference: per factor, see
            `total_variation_by_condition`;
        spread, spread_true: per continuous factor, see `spread`.
    A value that no image determines is None.

    Raises ValueError if there are no images, or if the numbers of prompts and images differ.
    """
    for name, images in (("images", reading), ("reference", reference)):
        if images is not None and (len(images) != len(prompts) or not prompts):
            raise ValueError(
                f"{name}: expected one prompt per image and at least one, got {len(prompts)} prompts for "
                f"{len(images)} images; repeat a prompt for each of its images"
            )
    accuracy = named_accuracy(prompts, reading)
    modes = effective_modes(prompts, reading)
    variation = total_variation_by_condition(prompts, reading, reference)
    spreads = spread(prompts, reading)
    ratios = [
        math.log(row["measured"] / row["exact"])
        for row in modes.values()
        if row["measured"] is not None and row["exact"] is not None  # both or neither
    ]
    out = {
        "num_images": len(prompts),
        "num_prompts": len(set(prompts)),
        "validity": float(reading.valid.double().mean()),
        "named_accuracy": accuracy.pop("all"),
        "named_accuracy_by_factor": accuracy,
        "effective_modes": _column(modes, "measured"),
        "effective_modes_exact": _column(modes, "exact"),
        "effective_modes_true": _column(modes, "true"),
        "effective_modes_mean": math.exp(sum(ratios) / len(ratios)) if ratios else None,
        "total_variation_true": _column(variation, "true"),
        "total_variation_floor": _column(variation, "floor"),
        "spread": _column(spreads, "measured"),
        "spread_true": _column(spreads, "true"),
    }
    if reference is not None:
        out["total_variation_reference"] = _column(variation, "reference")
    return out


def _valid_rows(prompts: list[str], reading: Reading) -> dict[str, Tensor]:
    """Indices of the valid images of every prompt, in order of first appearance."""
    rows = defaultdict(list)
    for i, (prompt, valid) in enumerate(zip(prompts, reading.valid.tolist(), strict=True)):
        if valid:
            rows[prompt].append(i)
    return {prompt: torch.tensor(index) for prompt, index in rows.items()}


def _counts(reading: Reading, factor: str, index: Tensor) -> Tensor:
    """How often each value of a factor was read in the images `index`, (number of values,)."""
    return torch.bincount(reading.scenes.discrete[factor][index], minlength=len(DISCRETE_FACTORS[factor]))


def _counts_by_condition(prompts: list[str], reading: Reading, factor: str) -> dict[tuple, Tensor]:
    """Counts of a factor over the valid images whose prompt leaves it free, by condition.

    A condition is ((factor, value),) for the factor in DEPENDS_ON, or () if that factor is free as well.
    """
    counts: dict[tuple, Tensor] = {}
    for prompt, index in _valid_rows(prompts, reading).items():
        named = named_factors(prompt)
        if factor not in named:
            key = tuple((name, value) for name, value in named.items() if name == DEPENDS_ON[factor])
            counts[key] = counts.get(key, 0) + _counts(reading, factor, index)
    return counts


def _true_variance(factor: str, named: dict[str, str]) -> float:
    """Variance of a continuous factor given the named factors, which is that of a mixture of uniforms."""
    intervals, weights = {
        "x": (list(SIDES.values()), conditional_probability("side", named).tolist()),
        "y": ([Y_RANGE], [1.0]),
        "radius": (list(SIZES.values()), conditional_probability("size", named).tolist()),
        "rotation": ([ROTATION_RANGE], [1.0]),
    }[factor]
    parts = [(w, (low + high) / 2, (high - low) ** 2 / 12) for w, (low, high) in zip(weights, intervals, strict=True)]
    mean = sum(w * centre for w, centre, _ in parts)
    return sum(w * (within + (centre - mean) ** 2) for w, centre, within in parts)


def _weighted(values: dict, weights: dict) -> float | None:
    """Mean of `values` weighted by `weights`, which may have more keys; None if there are no values."""
    total = sum(weights[key] for key in values)
    return sum(value * weights[key] for key, value in values.items()) / total if values else None


def _column(rows: dict[str, dict], name: str) -> dict:
    """The entry `name` of every row."""
    return {key: row[name] for key, row in rows.items()}
