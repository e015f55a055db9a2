"""Scores as lines for a terminal: in words, diversity first."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dpdmd.evaluate.metrics import METRICS, Metric, metric_of
from dpdmd.evaluate.words import writer

COUNTS = ("num_prompts", "images_per_prompt")


def lines(metrics: dict[str, Any]) -> list[str]:
    """Every metric with its interval under the heading of its group, of further networks too, and what was left out.

    Of several sizes each has its own.
    """
    further_sizes = metrics.get("further_sizes", {})
    if not further_sizes:
        return _of_one_size(metrics)
    found = [f"images of {1 + len(further_sizes)} sizes (height x width), each scored by itself"]
    for size, own in ((metrics["image_size"], metrics), *further_sizes.items()):
        found += ["", f"{size} pixels: {_of_one_size(own)[0]}", *_of_one_size(own)[1:]]
    return found


def _of_one_size(metrics: dict[str, Any]) -> list[str]:
    prompts, images = (metrics.get(count, "?") for count in COUNTS)
    found = [f"{prompts} prompts, {images} images each; in brackets 95 % intervals over prompts"]
    found += _lines(metrics)
    for name, further in metrics.get("further_features", {}).items():
        found += ["", f"Measured with {name}:", *_lines(further)]
    return found


def _lines(metrics: dict[str, Any]) -> list[str]:
    found: list[str] = []
    group = None
    listed = list(_listed(metrics))
    width = max((len(metric.heading) for metric in listed), default=0)
    for metric in listed:
        if metric.group != group:
            group = metric.group
            found += ["", group]
        found.append(f"  {metric.heading:<{width}}  {_value(metrics, metric)}")
    return found + [f"left out: {what}: {why}" for what, why in metrics.get("skipped", {}).items()]


def _listed(metrics: dict[str, Any]) -> Iterable[Metric]:
    """The known metrics in the order of their table, then the others."""
    numbers = [key for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    known = [metric.key for metric in METRICS]
    for key in [key for key in known if key in numbers]:
        yield metric_of(key)
    for key in [key for key in numbers if key not in known and key not in COUNTS]:
        yield replace(metric_of(key), group="Other")


def _value(metrics: dict[str, Any], metric: Metric) -> str:
    value, bounds = metrics[metric.key], metrics.get("intervals", {}).get(metric.key)
    write = writer(metric.style, [value, *(bounds or ())])
    interval = f"  [{write(bounds[0])}, {write(bounds[1])}]" if bounds else ""
    better = f"  ({metric.better})" if metric.better else ""
    return f"{write(value)}{interval}{better}"
