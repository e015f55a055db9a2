"""Plots of scores: the diversity of each arm against its quality, and how diversity varies over prompts."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dpdmd.evaluate.metrics import Metric, metric_of
from dpdmd.report.colours import INK, arm_colours, plain
from dpdmd.report.runs import ArmReport, is_number, shares_of

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


def trade_off(arms: dict[str, ArmReport], quality: Metric) -> "Figure":
    """Diversity kept against quality, a point for each arm, with intervals in both directions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = arm_colours(arms)
    is_share = quality.style == "percent"
    scale = 100 if is_share else 1
    rows = trade_off_rows(arms, quality)
    for row in rows:
        x, y = 100 * row["diversity_share"], scale * row[quality.key]
        bars = {"xerr": _bars(row, "diversity_share", 100), "yerr": _bars(row, quality.key, scale)}
        style = {"fmt": "o", "color": colours[row["name"]], "markersize": 7, "linewidth": 1.2}
        axes.errorbar(x, y, **bars, **style, label=plain(row["arm"]))
    axes.set_xlabel("diversity, % of the teacher's")
    axes.set_ylabel(f"{quality.heading}, %" if is_share else plain(quality.heading))
    axes.margins(0.12)
    if is_share:
        # Nothing is above 100 %; the margin keeps a point there whole.
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, 98), min(top, 100.6))
    figure.legend(loc="outside upper left", ncols=min(len(rows), 4), frameon=False)
    axes.grid(alpha=0.18, linewidth=0.6, color=INK)
    return figure


def spread(arms: dict[str, ArmReport]) -> "Figure | None":
    """The diversity kept by each arm's prompts, sorted; None when no arm has it for two prompts."""
    shares = _sorted_shares(arms)
    if not shares:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    colours = arm_colours(arms)
    axes.axhline(100, color=colours.get("teacher", INK), linewidth=1, linestyle=(0, (4, 3)))
    for name, values in shares.items():
        some = np.unique(np.linspace(0, len(values) - 1, 400).round().astype(int))
        places = 100 * (some + 0.5) / len(values)
        axes.plot(places, 100 * values[some], color=colours[name], linewidth=1.6, label=plain(arms[name].label))
    axes.set_xlim(0, 100)
    # A prompt on which the teacher hardly varies may have a share of any size.
    axes.set_ylim(0, min(250, 8 + max(100, *(100 * values[-1] for values in shares.values()))))
    axes.set_xlabel("prompts, %, from the most to the least collapsed")
    axes.set_ylabel("diversity, % of the teacher's")
    figure.legend(loc="outside upper left", ncols=min(len(shares), 4), frameon=False)
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
