"""Plots of scores: the diversity of each arm against its quality, and how diversity varies over prompts."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dpdmd.evaluate.metrics import Metric, metric_of
from dpdmd.report.colours import INK, arm_colours, plain
from dpdmd.report.labels import Labels, Point
from dpdmd.report.runs import ArmReport, is_number, shares_of
from dpdmd.report.target import mark_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Keys of metrics that may stand for quality, the best first.
QUALITY = ("quality", "named_accuracy", "image_reward", "pick_score", "hps_v21", "clip_score", "precision")


def quality_metric(arms: dict[str, ArmReport]) -> Metric | None:
    """The metric on the quality axis: the first of QUALITY that two arms have; None when there is no such metric."""
    return next((metric_of(key) for key in QUALITY if len(trade_off_rows(arms, metric_of(key))) > 1), None)


def trade_off_rows(arms: dict[str, ArmReport], quality: Metric) -> list[dict[str, Any]]:
    """A row for each arm that has both metrics, with their intervals."""
    rows = []
    for name, arm in arms.items():
        share, value = arm.metrics.get("diversity_share"), arm.metrics.get(quality.key)
        if name == "teacher" and share is None and is_number(arm.metrics.get("diversity")):
            share = 1.0
        if is_number(share) and is_number(value):
            row: dict[str, Any] = {"arm": arm.label, "name": name}
            for key, number in (("diversity_share", share), (quality.key, value)):
                low, high = (arm.metrics.get("intervals") or {}).get(key) or (None, None)
                row |= {key: number, f"{key}_low": low, f"{key}_high": high}
            rows.append(row)
    return rows


def trade_off(arms: dict[str, ArmReport], quality: Metric, size: tuple[float, float]) -> "Figure":
    """Diversity kept against quality, a point for each arm with its name and its intervals; size in inches.

    Points that would squeeze the others are outside, see `outside`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = arm_colours(arms)
    scale = _scale(quality)
    points = _points(arms, quality)
    for name, (row, point) in points.items():
        bars = {"xerr": _bars(row, "diversity_share", 100), "yerr": _bars(row, quality.key, scale)}
        style = {"fmt": "o", "color": colours[name], "markersize": 8, "linewidth": 1.3, "zorder": 4}
        axes.errorbar(*point, **bars, **style)
    axes.set_xlabel("diversity, % of the teacher's")
    axes.set_ylabel(f"{quality.heading}, %" if quality.style == "percent" else plain(quality.heading))
    axes.grid(alpha=0.18, linewidth=0.6, color=INK)
    (left, right), (bottom, top) = _limits(arms, quality)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    if "teacher" in points:
        row = points["teacher"][0]
        low = row[f"{quality.key}_low"]
        mark_target(axes, scale * (row[quality.key] if low is None else low))
    figure.draw_without_rendering()  # decides where the points are on the page
    labels = Labels(axes)
    for row, point in points.values():
        labels.avoid([point])
        for key, axis, factor in (("diversity_share", 0, 100), (quality.key, 1, scale)):
            ends = [row[f"{key}_{end}"] for end in ("low", "high")]
            if None not in ends:
                labels.avoid([(factor * end, point[1]) if axis == 0 else (point[0], factor * end) for end in ends])
    for name, (_, point) in points.items():
        labels.place(arms[name].name, point, colours[name], bold=True)
    return figure


def outside(arms: dict[str, ArmReport], quality: Metric) -> list[str]:
    """Arms whose points are outside of the axes of `trade_off`, with where they are, as texts."""
    (left, right), (bottom, top) = _limits(arms, quality)
    return [
        f"{row['arm']} at {x:.0f} %, {y:.3g}{' %' if quality.style == 'percent' else ''}"
        for row, (x, y) in _points(arms, quality).values()
        if not (left <= x <= right and bottom <= y <= top)
    ]


def _points(arms: dict[str, ArmReport], quality: Metric) -> dict[str, tuple[dict[str, Any], Point]]:
    """The row of each arm and its place, in the units of the axes."""
    return {
        row["name"]: (row, (100 * row["diversity_share"], _scale(quality) * row[quality.key]))
        for row in trade_off_rows(arms, quality)
    }


def _scale(quality: Metric) -> int:
    return 100 if quality.style == "percent" else 1


def _limits(arms: dict[str, ArmReport], quality: Metric) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of both axes: around all students and the teacher. The teacher at few steps, which may be far off, is in
    them only if it is near."""
    points = _points(arms, quality)
    shown = [name for name in points if name != "teacher_few_steps"] or list(points)
    limits = []
    for axis, key, factor in ((0, "diversity_share", 100), (1, quality.key, _scale(quality))):
        ends = [factor * (points[name][0][f"{key}_{end}"] or points[name][0][key])
                for name in shown for end in ("low", "high")]  # fmt: skip
        low, high = min(ends), max(ends)
        for name in points:
            value = points[name][1][axis]
            if max(high, value) - min(low, value) <= 1.5 * (high - low):
                low, high = min(low, value), max(high, value)
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        limits.append((low - margin, high + margin))
    if quality.style == "percent":
        # Nothing is above 100 %; the margin keeps a point there whole.
        limits[1] = (limits[1][0], min(limits[1][1], 100 + 0.04 * (100 - limits[1][0])))
    return limits[0], limits[1]


def spread(arms: dict[str, ArmReport], size: tuple[float, float]) -> "Figure | None":
    """The diversity kept by each arm's prompts, sorted; None when no arm has it for two. size: in inches."""
    shares = _sorted_shares(arms)
    if not shares:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    colours = arm_colours(arms)
    axes.axhline(100, color=colours.get("teacher", INK), linewidth=1, linestyle=(0, (4, 3)))
    for name, values in shares.items():
        some = np.unique(np.linspace(0, len(values) - 1, 400).round().astype(int))
        places = 100 * (some + 0.5) / len(values)
        axes.plot(places, 100 * values[some], color=colours[name], linewidth=1.6)
    axes.set_xlim(0, 100)
    # A prompt on which the teacher hardly varies may have a share of any size.
    axes.set_ylim(0, min(250, 8 + max(100, *(100 * values[-1] for values in shares.values()))))
    axes.set_xlabel("prompts, %, most collapsed first")
    axes.set_ylabel("diversity, % of the teacher's")
    axes.grid(alpha=0.18, linewidth=0.6, color=INK)
    return figure


def spread_rows(arms: dict[str, ArmReport]) -> list[dict[str, Any]]:
    """The numbers of `spread`: arm, place (1 is the most collapsed), diversity kept."""
    return [
        {"arm": arms[name].label, "place": place, "diversity_share": float(share)}
        for name, values in _sorted_shares(arms).items()
        for place, share in enumerate(values, start=1)
    ]


def _sorted_shares(arms: dict[str, ArmReport]) -> dict[str, np.ndarray]:
    shares = {name: np.sort(list(shares_of(arm.metrics).values())) for name, arm in arms.items() if name != "teacher"}
    return {name: values for name, values in shares.items() if len(values) > 1}


def _bars(row: dict[str, Any], key: str, scale: float) -> list[list[float]] | None:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    if low is None or high is None:
        return None
    return [[scale * max(row[key] - low, 0)], [scale * max(high - row[key], 0)]]
