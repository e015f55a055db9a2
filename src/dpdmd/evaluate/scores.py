"""What a scorer returns for a folder of images, and how the results of several scorers become one dict."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dpdmd.evaluate.intervals import Estimate, mean_estimate


@dataclass(frozen=True)
class Scores:
    """What one scorer found.

    estimates: metrics with intervals over prompts. values: metrics without intervals, and other results.
    per_prompt: {metric: value} of each prompt, in their order, or empty. skipped: {what was left out: why}. sources:
    the weights that were used.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    per_prompt: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)


def together(prompts: list[str], scores: Iterable[Scores]) -> dict[str, Any]:
    """Scores as one dict: every metric, "intervals", "per_prompt" and, if anything was left out, "skipped"."""
    values: dict[str, Any] = {}
    estimates: dict[str, Estimate] = {}
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    skipped: dict[str, str] = {}
    for score in scores:
        values |= score.values
        estimates |= score.estimates
        skipped |= score.skipped
        for row, more in zip(rows, score.per_prompt or [{}] * len(rows), strict=True):
            row |= more
    metrics = values | {key: estimate.value for key, estimate in estimates.items()}
    metrics["intervals"] = {key: e.interval for key, e in estimates.items() if e.interval is not None}
    metrics["per_prompt"] = rows
    if skipped:
        metrics["skipped"] = skipped
    return metrics


def quality(metrics: dict[str, Any]) -> Estimate | None:
    """How good the images are, whatever their diversity: the other axis of the trade-off.

    On the built-in world it is validity x named accuracy of a prompt, averaged over prompts: about the share of images
    that are clean and as prompted. Validity alone would not notice a student that ignores its prompts, and named
    accuracy alone is near 1 for everything that was trained here. For other images it is "precision", the share of
    images that are near the teacher's; None without features.
    """
    rows = metrics["per_prompt"]
    if all("validity" in row for row in rows):
        return mean_estimate([row["validity"] * row["named_accuracy"] for row in rows])
    precision = metrics.get("precision")
    return None if precision is None else Estimate(precision, None, None, len(rows))
