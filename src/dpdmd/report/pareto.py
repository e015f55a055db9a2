"""The plot of a comparison: diversity against quality, where every arm ends and how it got there."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dpdmd.report.colours import INK, plain, shade
from dpdmd.report.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

X, Y = "diversity_share", "quality"
# Points of the teacher's curve may widen the plot on each side by this share of the width that the arms need.
CURVE_ROOM = 0.35

Point = tuple[float, float]


def pareto(comparison: Comparison, colours: dict[str, str]) -> "Figure | None":
    """The plot; None when fewer than two arms have both metrics.

    For each arm it shows the path of its students, the seeds, and their mean with intervals and its name; for the
    teacher its curve over guidance. All points of arms are inside the axes; intervals and the curve may leave them.
    """
    ends = {name: metrics for name, metrics in comparison.metrics.items() if X in metrics and Y in metrics}
    if len(ends) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.18, linewidth=0.6, color=INK)
    axes.set_xlabel("diversity, % of the teacher's")
    axes.set_ylabel("quality, %")
    curve = _points(comparison.curve)
    if curve:
        axes.plot(*zip(*curve, strict=True), "o-", color=colours["teacher"], linewidth=1.2, markersize=4, zorder=2)
    points = []
    for name, metrics in ends.items():
        points += _draw_arm(axes, metrics, _points(comparison.paths.get(name, [])), colours[name])
    _fit(axes, points, curve)
    figure.draw_without_rendering()  # decides where the points are on the page
    labels = _Labels(axes)
    labels.avoid(curve)
    for name, metrics in ends.items():
        labels.avoid([*_points(comparison.paths.get(name, [])), _mean(metrics)])
        for line in (_bar(metrics, 0), _bar(metrics, 1), *([seed] for seed in _seeds(metrics))):
            labels.avoid(line)
    for name, metrics in ends.items():
        labels.place(comparison.arms[name].label, _mean(metrics), colours[name], bold=True)
    for row, point in zip(comparison.curve, curve, strict=True):
        labels.place(f"guidance {row['guidance_scale']:g}", point, colours["teacher"])
    return figure


def pareto_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The points of the plot, one row each: its arm, its kind ("mean", "seed", "on the way", "guidance") and place."""
    rows = []
    for name, metrics in comparison.metrics.items():
        if X in metrics and Y in metrics:
            arm = {"arm": comparison.arms[name].label}
            rows.append(arm | {"point": "mean"} | _with_intervals(metrics))
            for seed, (x, y) in enumerate(zip(metrics[X]["values"], metrics[Y]["values"], strict=True)):
                rows.append(arm | {"point": "seed", "number": seed, X: x, Y: y})
            for step in comparison.paths.get(name, []):
                rows.append(arm | {"point": "on the way", "number": step["step"]} | _with_intervals(step))
    for row in comparison.curve:
        rows.append({"arm": "Teacher", "point": "guidance", "number": row["guidance_scale"]} | _with_intervals(row))
    return rows


def _with_intervals(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: metrics[key].get(end)
        for key in (X, Y)
        for name, end in ((key, "mean"), (f"{key}_low", "low"), (f"{key}_high", "high"))
    }


def _draw_arm(axes: "Axes", metrics: dict[str, Any], path: list[Point], colour: str) -> list[Point]:
    """Draw one arm; returns its points, in per cent."""
    mean = _mean(metrics)
    way = [*path, mean] if path else []
    for i in range(len(way) - 1):
        strength = 0.25 + 0.45 * (i + 1) / (len(way) - 1)
        axes.plot(*zip(way[i], way[i + 1], strict=True), color=colour, alpha=strength, linewidth=1.6, zorder=3)
        axes.plot(*way[i], "o", color=colour, alpha=strength, markersize=4, markeredgewidth=0, zorder=3)
    seeds = _seeds(metrics)
    if len(seeds) > 1:
        axes.plot(*zip(*seeds, strict=True), "x", color=colour, alpha=0.7, markersize=4, markeredgewidth=1, zorder=4)
    for axis in (0, 1):
        axes.plot(*zip(*_bar(metrics, axis), strict=True), color=colour, linewidth=1.3, zorder=4)
    axes.plot(*mean, "o", color=colour, markersize=9, markeredgecolor="white", markeredgewidth=1.2, zorder=5)
    return [*path, *seeds, mean]


def _mean(metrics: dict[str, Any]) -> Point:
    return 100 * metrics[X]["mean"], 100 * metrics[Y]["mean"]


def _seeds(metrics: dict[str, Any]) -> list[Point]:
    pairs = zip(metrics[X]["values"], metrics[Y]["values"], strict=True)
    return [(100 * x, 100 * y) for x, y in pairs if x is not None and y is not None]


def _points(rows: list[dict[str, Any]]) -> list[Point]:
    return [_mean(row) for row in rows]


def _bar(metrics: dict[str, Any], axis: int) -> tuple[Point, Point]:
    """Both ends of an interval through the mean, along x (0) or y (1)."""
    mean, summary = _mean(metrics), metrics[(X, Y)[axis]]
    low, high = (100 * summary.get(end, summary["mean"]) for end in ("low", "high"))
    return ((low, mean[1]), (high, mean[1])) if axis == 0 else ((mean[0], low), (mean[0], high))


def _fit(axes: "Axes", points: list[Point], curve: list[Point]) -> None:
    """Set limits around the points of arms and the nearby ones of the curve, at least ten percentage points wide."""
    low, high = (edge(x for x, _ in points) for edge in (min, max))
    room = max(CURVE_ROOM * (high - low), 10)
    near = points + [point for point in curve if low - room <= point[0] <= high + room]
    for values, limit in zip(zip(*near, strict=True), (axes.set_xlim, axes.set_ylim), strict=True):
        low, high = min(values), max(values)
        margin = max(0.08 * (high - low), (10 - (high - low)) / 2, 1)
        limit(low - margin, high + margin)


class _Labels:
    """Names next to points, each where it covers the fewest lines, points and earlier names and stays inside."""

    def __init__(self, axes: "Axes"):
        self.axes = axes
        self.taken: list[Bbox] = []
        self.ink = np.empty((0, 2))  # pixels, in display coordinates

    def avoid(self, line: "list[Point] | tuple[Point, ...]") -> None:
        """Keep names off the line through these points."""
        if not line:
            return
        corners = self.axes.transData.transform(line)
        pieces = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)) for a, b in pairwise(corners)]
        self.ink = np.concatenate([self.ink, corners, *pieces])

    def place(self, text: str, point: Point, colour: str, *, bold: bool = False) -> None:
        """Write `text` next to `point`, with a line to it when it had to go far; nothing for a point outside."""
        if not self.axes.bbox.contains(*self.axes.transData.transform(point)):
            return
        note = self.axes.annotate(
            plain(text), point, xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            color=shade(colour), fontsize=9 if bold else 7.5, fontweight="bold" if bold else "normal", zorder=6,
        )  # fmt: skip
        here = note.get_window_extent()
        dx, dy, cost = min(_shifts(here, 9 if bold else 7), key=lambda s: self._cost(here.translated(*s[:2])) + s[2])
        unit = 72 / self.axes.figure.dpi
        note.set_position((dx * unit, dy * unit))
        if cost and bold:
            end = (_towards_zero(dx, here.width / 2) * unit, _towards_zero(dy, here.height / 2) * unit)
            self.axes.annotate(
                "", point, xytext=end, textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
        self.taken.append(here.translated(dx, dy))

    def _cost(self, box: "Bbox") -> float:
        frame, margin = self.axes.bbox, 3
        corner, far = np.array([box.x0, box.y0]) - margin, np.array([box.x1, box.y1]) + margin
        covered = int(((self.ink > corner) & (self.ink < far)).all(axis=1).sum())
        leaves = not (frame.contains(*corner) and frame.contains(*far))
        return 8 * covered + 200 * sum(box.padded(margin).overlaps(other) for other in self.taken) + 400 * leaves


def _shifts(box: "Bbox", gap: float) -> list[tuple[float, float, float]]:
    """(dx, dy, cost) of places around a point, in pixels: rings, of which the nearest costs nothing."""
    rings = [(gap * (1 + 1.3 * ring), 12.0 * ring) for ring in range(5)]
    ways = [(math.cos(math.pi * k / 12), math.sin(math.pi * k / 12)) for k in range(24)]

    def offset(way: float, radius: float, extent: float) -> float:
        # At a diagonal place a corner of the box is nearest to the point, else the middle of an edge.
        return way * radius + extent / 2 * max(-1.0, min(1.0, 1.5 * way))

    return [
        (offset(x, radius, box.width), offset(y, radius, box.height), cost) for radius, cost in rings for x, y in ways
    ]


def _towards_zero(value: float, step: float) -> float:
    return math.copysign(max(abs(value) - step, 0.0), value)
