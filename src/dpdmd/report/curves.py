"""Plots of training logs: every logged quantity against the student's updates."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dpdmd.evaluate.metrics import BY_KEY
from dpdmd.report.colours import INK, arm_colours
from dpdmd.report.runs import ArmReport, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_TITLES = {
    "loss/dmd": "DMD loss",
    "loss/anchor": "anchor loss",
    "loss/perceptual": "perceptual loss",
    "loss/fake_score": "fake score loss",
    "loss/adversarial": "adversarial loss",
    "loss/discriminator": "discriminator loss",
    "health/cosine": "cosine of teacher's and fake score",
    "health/relative_gap": "relative gap of the scores",
    "health/magnitude_ratio": "magnitude ratio, fake / real",
    "health/discriminator_accuracy": "accuracy of the discriminator",
    "sample/mean": "sample mean",
    "sample/std": "sample std",
    "sample/saturation": "saturated share of samples",
    "grad_norm/student": "gradient norm, student",
    "grad_norm/fake_score": "gradient norm, fake score",
    "grad_norm/discriminator": "gradient norm, discriminator",
    **{f"validation/{key}": BY_KEY[key].heading for key in ("diversity_share", "quality", "saturation")},
}
# A panel is about 250 pixels wide: more points would be a larger page that looks the same.
MOST_POINTS = 250


def curves(arms: dict[str, ArmReport], prefixes: tuple[str, ...], size: tuple[float, float]) -> "dict[str, Figure]":
    """{title: panel} of each logged quantity that starts with a prefix and has two values; size in inches."""
    series = {key: {name: _series(arm.log, key) for name, arm in arms.items()} for key in _keys(arms, prefixes)}
    keys = [key for key in series if any(len(steps) > 1 for steps, _ in series[key].values())]
    colours = arm_colours(arms)
    return {PANEL_TITLES.get(key, key): _panel(series[key], colours, size) for key in keys}


def _panel(series: dict[str, tuple[np.ndarray, np.ndarray]], colours: dict[str, str], size: Any) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, values) in series.items():
        if len(steps):
            _curve(axes, steps, values, colours[name])
    axes.grid(alpha=0.15, linewidth=0.6, color=INK)
    axes.set_xlabel("student update")
    axes.locator_params(nbins=5)
    return figure


def curve_rows(arms: dict[str, ArmReport], prefixes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The numbers of these curves, one row for each arm and update."""
    keys = ("step", *_keys(arms, prefixes))
    return [
        {"arm": arm.label} | {key: row[key] for key in keys if key in row}
        for arm in arms.values()
        for row in arm.log
        if any(key in row for key in keys[1:])
    ]


def _keys(arms: dict[str, ArmReport], prefixes: tuple[str, ...]) -> list[str]:
    found = {key for arm in arms.values() for row in arm.log for key in row if key.startswith(prefixes)}
    order = list(PANEL_TITLES)
    return sorted(found, key=lambda key: (order.index(key) if key in order else len(order), key))


def _curve(axes: "Axes", steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    kept = thinned(values, MOST_POINTS)
    axes.plot(steps[kept], values[kept], color=colour, alpha=0.25, linewidth=0.7)
    some = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))
    axes.plot(steps[some], _smooth(values)[some], color=colour, linewidth=1.5)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Rising indices of about `most` values that keep every peak: the smallest and the largest of each interval."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    ends = [
        start + at
        for start, stop in pairwise(edges)
        for at in (values[start:stop].argmin(), values[start:stop].argmax())
    ]
    return np.unique(ends)


def _series(log: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one logged quantity, from the lines that have it."""
    pairs = [(row["step"], row[key]) for row in log if is_number(row.get("step")) and is_number(row.get(key))]
    both = np.array(pairs, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about a fifteenth of the run."""
    half = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
