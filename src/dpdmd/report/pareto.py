"""The plot of a comparison: diversity against quality, where every arm ends and how it got there."""

from typing import TYPE_CHECKING, Any

from dpdmd.report.colours import INK
from dpdmd.report.comparison import Comparison
from dpdmd.report.labels import Labels, Point
from dpdmd.report.target import mark_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X, Y = "diversity_share", "quality"
# Points of the teacher's curve may widen the plot on each side by this share of the width that the arms need.
CURVE_ROOM = 0.35


def pareto(comparison: Comparison, colours: dict[str, str], size: tuple[float, float]) -> "Figure | None":
    """The plot, of a size in inches; None when fewer than two arms have both metrics.

    For each arm it shows the path of its students, the seeds, and their mean with intervals and its name; for the
    teacher its curve over guidance. All points of arms are inside the axes; intervals and the curve may leave them.
    """
    ends = {name: metrics for name, metrics in comparison.metrics.items() if X in metrics and Y in metrics}
    if len(ends) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
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
    if "teacher" in ends:
        mark_target(axes, _bar(ends["teacher"], 1)[0][1])
    figure.draw_without_rendering()  # decides where the points are on the page
    labels = Labels(axes)
    labels.avoid(curve)
    for name, metrics in ends.items():
        labels.avoid([*_points(comparison.paths.get(name, [])), _mean(metrics)])
        for line in (_bar(metrics, 0), _bar(metrics, 1), *([seed] for seed in _seeds(metrics))):
            labels.avoid(line)
    for name, metrics in ends.items():
        labels.place(comparison.arms[name].name, _mean(metrics), colours[name], bold=True)
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
