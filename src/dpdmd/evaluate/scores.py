"""What a scorer tells of a folder of images, and how scores are put together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dpdmd.evaluate.intervals import Estimate, mean_estimate


@dataclass(frozen=True)
class Scores:
    """What one scorer found.

    estimates: figures with their intervals over prompts. figures: what has none. per_prompt: figures of each prompt,
    in their order; empty where there are none. skipped: what was left out and why. sources: which weights were used.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    per_prompt: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)


def together(prompts: list[str], scores: Iterable[Scores]) -> dict[str, Any]:
    """Scores as one dict of plain numbers: every figure, "intervals", "per_prompt" and, if anything was, "skipped"."""
    figures: dict[str, Any] = {}
    estimates: dict[str, Estimate] = {}
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    skipped: dict[str, str] = {}
    for score in scores:
        figures |= score.figures
        estimates |= score.estimates
        skipped |= score.skipped
        for row, more in zip(rows, score.per_prompt or [{}] * len(rows), strict=True):
            row |= more
    metrics = figures | {key: estimate.value for key, estimate in estimates.items()}
    metrics["intervals"] = {key: e.interval for key, e in estimates.items() if e.interval is not None}
    metrics["per_prompt"] = rows
    if skipped:
        metrics["skipped"] = skipped
    return metrics


def quality(metrics: dict[str, Any]) -> Estimate | None:
    """How good the images are, whatever their diversity: the axis against which diversity is traded.

    On the built-in world validity x named accuracy of a prompt, in the mean over prompts: about the share of images
    that are clean and as prompted. Validity alone would not see a student that ignores its prompts; named accuracy
    alone is near 1 for whatever was trained here. Elsewhere "precision", the share of images that are near the
    teacher's, if there are features; else None.
    """
    rows = metrics["per_prompt"]
    if all("validity" in row for row in rows):
        return mean_estimate([row["validity"] * row["named_accuracy"] for row in rows])
    precision = metrics.get("precision")
    return None if precision is None else Estimate(precision, None, None, len(rows))
