"""Scores from features: how different the images of a prompt are, and how like the teacher's all images are."""

import math
from typing import Any

from dpdmd.evaluate.diversity import pairwise_diversity, spatial_diversity, vendi_score
from dpdmd.evaluate.fidelity import frechet_distance, kernel_distance, neighbours
from dpdmd.evaluate.intervals import mean_estimate, ratio_estimate
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores
from dpdmd.vision.features import Features

NUM_NEIGHBOURS = 5
NEAR = 0.2
NUM_WORST = 10
WORST = 0.1


def feature_scores(samples: Samples, features: Features, of_teacher: Features | None) -> list[Scores]:
    """`diversity_scores` and, with the teacher's features, `fidelity_scores`; skips what needs more images."""
    scores, num_prompts = [], len(samples.prompts)
    if samples.images_per_prompt < 2:
        what = "feature metrics" if of_teacher is None else "diversity"
        scores.append(
            Scores(skipped={what: f"they need at least 2 images per prompt, got {samples.images_per_prompt}"})
        )
    else:
        teacher = None if of_teacher is None else of_teacher.per_prompt(num_prompts)
        scores.append(diversity_scores(samples.prompts, features.per_prompt(num_prompts), teacher))
    if of_teacher is not None and len(samples.files) > 1:
        scores.append(fidelity_scores(features, of_teacher))
    return scores


def diversity_scores(prompts: list[str], features: Features, of_teacher: Features | None) -> Scores:
    """ "diversity", "vendi" and, for a network that has places, "spatial_diversity": per prompt and averaged.

    With the teacher's features also "..._share", the sum over prompts divided by the teacher's sum;
    "prompts_near_reference", the share of prompts whose diversity is within 20 % of the teacher's; and
    "diversity_share_worst_tenth", the share in the tenth of prompts (at least one) that keep least. "worst_prompts" are
    the ten prompts that keep least, or without a teacher the least diverse ones.
    features: (P, R, D), as `Features.per_prompt` returns them.
    """
    ours = _by_prompt(features)
    estimates = {key: mean_estimate(values) for key, values in ours.items()}
    rows: list[dict[str, Any]] = [dict(zip(ours, values, strict=True)) for values in zip(*ours.values(), strict=True)]
    if of_teacher is None:
        worst = sorted(range(len(rows)), key=lambda i: rows[i]["diversity"])
        return Scores(estimates, {"worst_prompts": _listed(prompts, rows, worst)}, rows)
    theirs = _by_prompt(of_teacher)
    for key, values in theirs.items():
        if math.fsum(values) > 0:
            estimates[f"{key}_share"] = ratio_estimate(ours[key], values)
        for row, value in zip(rows, values, strict=True):
            row[f"reference_{key}"] = value
    for row in rows:
        reference = row["reference_diversity"]
        row["diversity_share"] = row["diversity"] / reference if reference > 0 else None
    near = [abs(a - b) <= NEAR * b for a, b in zip(ours["diversity"], theirs["diversity"], strict=True)]
    estimates["prompts_near_reference"] = mean_estimate(list(map(float, near)))
    shared = [i for i, row in enumerate(rows) if row["diversity_share"] is not None]
    worst = sorted(shared, key=lambda i: rows[i]["diversity_share"])
    found: dict[str, Any] = {"worst_prompts": _listed(prompts, rows, worst)}
    if worst:
        tenth = worst[: max(1, round(WORST * len(worst)))]
        total, reference = (math.fsum(rows[i][key] for i in tenth) for key in ("diversity", "reference_diversity"))
        found["diversity_share_worst_tenth"] = total / reference
    return Scores(estimates, found, rows)


def fidelity_scores(features: Features, of_teacher: Features) -> Scores:
    """ "frechet", "frechet_reliable" (see `FrechetDistance`), "kid" and, for more than five images, "precision",
    "recall", "density" and "coverage"."""
    pooled, reference = features.pooled, of_teacher.pooled
    frechet = frechet_distance(pooled, reference)
    values = {
        "frechet": frechet.value,
        "frechet_reliable": frechet.reliable,
        "kid": kernel_distance(pooled, reference),
    }
    if len(pooled) <= NUM_NEIGHBOURS:
        few = f"they need more than {NUM_NEIGHBOURS} images, got {len(pooled)}"
        return Scores(values=values, skipped={"precision, recall, density, coverage": few})
    return Scores(values=values | vars(neighbours(pooled, reference, num_neighbours=NUM_NEIGHBOURS)))


def _by_prompt(features: Features) -> dict[str, list[float]]:
    found = {"diversity": pairwise_diversity(features.pooled), "vendi": vendi_score(features.pooled)}
    if features.places is not None:
        found["spatial_diversity"] = spatial_diversity(features.places)
    return {key: values.tolist() for key, values in found.items()}


def _listed(prompts: list[str], rows: list[dict[str, Any]], order: list[int]) -> list[dict[str, Any]]:
    keys = ("diversity", "reference_diversity", "diversity_share")
    return [{"prompt": prompts[i]} | {key: rows[i][key] for key in keys if key in rows[i]} for i in order[:NUM_WORST]]
