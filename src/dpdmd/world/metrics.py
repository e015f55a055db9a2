"""Exact metrics of the built-in world: what the oracle read, held against the world's own conditional distributions.

Every number comes with what exact sampling would give (`*_true`, or `*_floor` and `*_exact` where the number of images
matters), so that a small sample is never taken for a loss of diversity.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor

from dpdmd.world.captions import NAMEABLE_FACTORS, named_factors
from dpdmd.world.oracle import Reading, read_scenes
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

# Factors that a prompt may leave free, each with the named factor that its distribution depends on.
DEPENDS_ON = {"colour": "background", "background": "colour", "size": None, "side": "shape"}


def entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of the distribution behind counts (..., K), corrected for the small sample; (...,).

    H = digamma(n) - sum_i (n_i / n) digamma(n_i), n = sum_i n_i; 0 for one mode.
    Its expectation is `expected_entropy`: short of the truth by sum over v >= n of sum_i p_i (1 - p_i)^v / v, which
    falls exponentially in n. For the world's background given a colour (4.75 effective modes) the exponential of the
    mean estimate is 4.08 at 8 samples, 4.58 at 16, 4.74 at 32; Miller-Madow's 3.98, 4.52, 4.72.
    Source: Zhang 2012, "Entropy estimation in Turing's perspective"; its digamma form: Schuermann 2015, "A note on
    entropy estimation".

    Raises ValueError when a row has no counts.
    """
    counts = counts.double()
    total = counts.sum(-1)
    if (total <= 0).any():
        raise ValueError("the entropy of no samples is undefined; leave such rows out")
    # The clamp keeps digamma's pole at 0 out; its factor is 0 there.
    weighted = counts * torch.digamma(counts.clamp_min(1))
    return torch.digamma(total) - weighted.sum(-1) / total


def expected_entropy(probability: Tensor, num_samples: int) -> float:
    """Expectation of `entropy` over exact samples: sum over v < n of sum_i p_i (1 - p_i)^v / v, in nats."""
    p = probability.double()[:, None]
    v = torch.arange(1, num_samples, dtype=torch.float64)
    return float((p * (1 - p) ** v / v).sum())


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """1/2 sum_i |p_i - q_i| over the last dimension of two distributions, each normalised first."""
    p, q = p.double(), q.double()
    return 0.5 * (p / p.sum(-1, keepdim=True) - q / q.sum(-1, keepdim=True)).abs().sum(-1)


def total_variation_floor(probability: Tensor, num_samples: int) -> float:
    """Mean total variation between `probability` (K,) and the empirical distribution of exact samples of it.

    1/2 sum_i E|X_i / n - p_i| with X_i binomial, each in de Moivre's closed form
    E|X - n p| = 2 m C(n, m) p^m (1 - p)^(n - m + 1), m = floor(n p) + 1.
    """
    n, out = num_samples, 0.0
    for p in probability.double().tolist():
        if 0 < p < 1:
            m = min(math.floor(n * p) + 1, n)
            log_choose = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
            out += m / n * math.exp(log_choose + m * math.log(p) + (n - m + 1) * math.log1p(-p))
    return out


def named_accuracy(prompts: list[str], reading: Reading) -> dict[str, float | None]:
    """Share of the prompts' named factors that were read right, "all" and per factor; None where none is named.

    An invalid image counts as what it was read as.
    """
    right = {factor: [] for factor in NAMEABLE_FACTORS}
    for i, prompt in enumerate(prompts):
        for factor, value in named_factors(prompt).items():
            right[factor].append(DISCRETE_FACTORS[factor][int(reading.scenes.discrete[factor][i])] == value)
    everything = [hit for hits in right.values() for hit in hits]
    return {name: sum(hits) / len(hits) if hits else None for name, hits in {"all": everything, **right}.items()}


def effective_modes(prompts: list[str], reading: Reading) -> dict[str, dict[str, float | None]]:
    """Effective modes of each free factor among the valid images of one prompt.

    Per factor: "measured" exp(mean over prompts of `entropy`) clipped to [1, number of values], "exact" what exact
    sampling gives in the same terms with the same counts, "true" its limit for many images. The mean is over prompts
    that leave the factor free and have two valid images or more; None where there is no such prompt.
    The mean is taken of entropies, so it is geometric over prompts: the exponential of single estimates is biased.
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
    prompts: list[str], reading: Reading, other_prompts: list[str] | None = None, other: Reading | None = None
) -> dict[str, dict[str, float | None]]:
    """Total variation of each free factor from the truth, and from another reading when given.

    Valid images are pooled by the one named factor on which the free one depends (DEPENDS_ON), for the total variation
    of few samples is mostly noise; conditions are averaged with their image counts as weights. Per factor: "true", the
    distance from the world's conditional distribution; "floor", what exact sampling gives with the same counts;
    "reference", the distance from the other reading under the conditions that both have, biased upwards by the noise
    of both. None where no image counts.
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
        if other is not None:
            others = _counts_by_condition(other_prompts, other, factor)
            shared = {key: float(total_variation(counts[key], others[key])) for key in counts if key in others}
            row["reference"] = _weighted(shared, sizes)
        out[factor] = row
    return out


def spread(prompts: list[str], reading: Reading) -> dict[str, dict[str, float | None]]:
    """Within-prompt standard deviation of the continuous factors among valid images, in pixels and degrees.

    Root of the mean over prompts of the unbiased variance (the mean of standard deviations would depend on the number
    of images), "measured" and "true" for the same prompts. Circles have no rotation and do not count for it; prompts
    with fewer than two images do not count.
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


def scene_metrics(
    prompts: list[str],
    images: Tensor | Reading,
    *,
    reference: Tensor | Reading | None = None,
    reference_prompts: list[str] | None = None,
) -> dict:
    """All exact metrics of images made from prompts, as a plain dict of numbers ready for JSON.

    prompts: one per image, repeated for several images of one prompt. images: (B, 3, 32, 32) in [-1, 1], or what
    `read_scenes` read in them. reference: images of another model (usually the teacher); its prompts default to
    `prompts`.

    Returns num_images; num_prompts; validity; named_accuracy (share) and named_accuracy_by_factor; effective_modes,
    effective_modes_exact and effective_modes_true per factor (`effective_modes`) and effective_modes_mean, the
    geometric mean over factors of measured / exact: 1 as diverse as exact sampling of as many images, less when modes
    were lost; total_variation_true, total_variation_floor and with a reference total_variation_reference per factor
    (`total_variation_by_condition`); spread and spread_true per continuous factor (`spread`). A number that no image
    defines is None.

    Raises ValueError when there are no images or the numbers of prompts and images differ.
    """
    reading = _reading_of(images, prompts, "images")
    other, other_prompts = None, None
    if reference is not None:
        other_prompts = prompts if reference_prompts is None else reference_prompts
        other = _reading_of(reference, other_prompts, "reference")
    elif reference_prompts is not None:
        raise ValueError("reference_prompts came without a reference; give both or neither")
    accuracy = named_accuracy(prompts, reading)
    modes = effective_modes(prompts, reading)
    variation = total_variation_by_condition(prompts, reading, other_prompts, other)
    spreads = spread(prompts, reading)
    ratios = [math.log(row["measured"] / row["exact"]) for row in modes.values() if row["measured"] is not None]
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
    if other is not None:
        out["total_variation_reference"] = _column(variation, "reference")
    return out


def _reading_of(images: Tensor | Reading, prompts: list[str], name: str) -> Reading:
    """The reading of images, checked against its prompts."""
    if len(images) != len(prompts) or len(prompts) == 0:
        raise ValueError(
            f"{name}: expected one prompt per image and at least one, got {len(prompts)} prompts for "
            f"{len(images)} images; repeat a prompt for each of its images"
        )
    return images if isinstance(images, Reading) else read_scenes(images)


def _valid_rows(prompts: list[str], reading: Reading) -> dict[str, Tensor]:
    """Indices of the valid images of every prompt, in order of first appearance."""
    rows = defaultdict(list)
    for i, (prompt, valid) in enumerate(zip(prompts, reading.valid.tolist(), strict=True)):
        if valid:
            rows[prompt].append(i)
    return {prompt: torch.tensor(index) for prompt, index in rows.items()}


def _counts(reading: Reading, factor: str, index: Tensor) -> Tensor:
    """How often each value of a factor was read in some images, (number of values,)."""
    return torch.bincount(reading.scenes.discrete[factor][index], minlength=len(DISCRETE_FACTORS[factor]))


def _counts_by_condition(prompts: list[str], reading: Reading, factor: str) -> dict[tuple, Tensor]:
    """Counts of a factor over the valid images that leave it free; keys are the condition as ((factor, value),)."""
    counts: dict[tuple, Tensor] = {}
    for prompt, index in _valid_rows(prompts, reading).items():
        named = named_factors(prompt)
        if factor not in named:
            key = tuple((name, value) for name, value in named.items() if name == DEPENDS_ON[factor])
            counts[key] = counts.get(key, 0) + _counts(reading, factor, index)
    return counts


def _true_variance(factor: str, named: dict[str, str]) -> float:
    """Variance of a continuous factor given the named ones: a mixture of uniforms."""
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
    """Mean of values under the weights of their keys."""
    total = sum(weights[key] for key in values)
    return sum(value * weights[key] for key, value in values.items()) / total if values else None


def _column(rows: dict[str, dict], name: str) -> dict:
    """One named number of every row."""
    return {key: row[name] for key, row in rows.items()}
