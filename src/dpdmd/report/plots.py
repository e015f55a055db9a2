"""Figures of a report: matplotlib drawings as inline SVG that follows the page's colours, and as PNG files."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdmd.files import atomic_path
from dpdmd.report.comparison import Comparison
from dpdmd.report.pareto import INK, pareto
from dpdmd.report.runs import ArmReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = {"teacher": "#7d8590", "teacher_few_steps": "#b08d57", "dmd": "#d9702a", "dp_dmd": "#1f8f8a"}
# Told apart on white and on black: 26 or more in CIELAB from each other and from those above.
OTHER_COLOURS = (
    "#8a63d2", "#3d7fd9", "#c2477f", "#6a994e", "#d64545", "#c99a06", "#2ba8cc", "#a3b32b", "#d68bd0", "#8d5b4c",
)  # fmt: skip
PANEL_TITLES = {
    "loss/dmd": "DMD loss",
    "loss/anchor": "anchor loss",
    "loss/perceptual": "perceptual loss",
    "loss/fake_score": "fake score loss",
    "loss/adversarial": "adversarial loss",
    "loss/discriminator": "discriminator loss",
    "loss/r1": "gradient penalty of the discriminator",
    "health/cosine": "cosine of real and fake score",
    "health/relative_gap": "relative gap of the scores",
    "health/magnitude_ratio": "magnitude ratio, fake / real",
    "health/discriminator_accuracy": "accuracy of the discriminator",
    "sample/mean": "sample mean",
    "sample/std": "sample std",
    "sample/saturation": "saturated share of samples",
    "grad_norm/student": "gradient norm, student",
    "grad_norm/fake_score": "gradient norm, fake score",
    "grad_norm/discriminator": "gradient norm, discriminator",
}


@dataclass(frozen=True)
class Plot:
    """One figure: file name without suffix, heading, one sentence on how to read it, and the SVG to inline."""

    name: str
    heading: str
    explanation: str
    svg: str


def arm_colours(arms: dict[str, ArmReport]) -> dict[str, str]:
    """A colour per row: fixed for the known ones, in order for the others."""
    others = [name for name in arms if name not in ARM_COLOURS]
    known = {name: ARM_COLOURS[name] for name in arms if name in ARM_COLOURS}
    return known | {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}


def draw_plots(arms: dict[str, ArmReport], folder: Path, comparison: Comparison | None = None) -> list[Plot]:
    """All figures for which there are numbers; each is also written to `folder` as PNG.

    A comparison has the picture of `pareto` instead of the rows' end points, and curves of one of its seeds.
    """
    trade_off = (
        "Each point is a row of the table, bars are 95 % intervals over prompts. Right: keeps more of the teacher's "
        "diversity. Up: draws more of what the prompt names. A good student is right and up."
    )
    curves = "Pale: every update; strong: moving average. "
    first = ("trade_off", "Diversity against following the prompt", trade_off, lambda: _trade_off(arms))
    if comparison is not None:
        curves += f"Of {comparison.shown}. "
        first = (
            "pareto",
            "Diversity against quality",
            comparison.picture,
            lambda: pareto(comparison, arm_colours(arms)),
        )
    candidates = [
        first,
        ("losses", "Losses", curves + "Losses of different objectives have no common scale: look at the trend.",
         lambda: _curves(arms, ("loss/",))),
        ("health", "Health", curves + "The cosine, gap and ratio compare the teacher's score with the fake score on "
         "the student's images: jumps mean unstable training. Growing saturation: colours leave the valid range.",
         lambda: _curves(arms, ("health/", "sample/", "grad_norm/"))),
    ]  # fmt: skip
    plots = []
    for name, heading, explanation, draw in candidates:
        svg = _drawn(name, draw, folder)
        if svg:
            plots.append(Plot(name, heading, explanation, svg))
    return plots


def _drawn(name: str, draw: Callable[[], "Figure | None"], folder: Path) -> str | None:
    """The figure's SVG; its PNG is written."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {
        "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.titlesize": 9, "axes.linewidth": 0.6, "svg.fonttype": "none", "svg.hashsalt": name,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = draw()
        if figure is None:
            return None
        FigureCanvasAgg(figure)
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=160, facecolor="white", metadata={"Software": None})
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """An SVG file as part of an HTML page: no declarations, no addresses, page colours, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").replace("xlink:href", "href")


def _trade_off(arms: dict[str, ArmReport]) -> "Figure | None":
    points = []
    for name, arm in arms.items():
        share = 1.0 if name == "teacher" and _number(arm.metrics, "diversity") is not None else None
        x = _number(arm.metrics, "diversity_share")
        x, y = share if x is None else x, _number(arm.metrics, "named_accuracy")
        if x is not None and y is not None:
            points.append((name, arm, x, y))
    if len(points) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = arm_colours(arms)
    for name, arm, x, y in points:
        bars = {axis: _bars(arm.metrics, key, value) for axis, key, value in (
            ("xerr", "diversity_share", x), ("yerr", "named_accuracy", y))}  # fmt: skip
        label = _plain(arm.label)
        axes.errorbar(100 * x, 100 * y, **bars, fmt="o", color=colours[name], markersize=7, linewidth=1.2, label=label)
    axes.set_xlabel("diversity, % of the teacher's")
    axes.set_ylabel("named factors right, %")
    axes.margins(0.12)
    # Nothing is above 100 %; a margin of its own keeps a point there whole.
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, 98), min(top, 100.6))
    figure.legend(loc="outside upper left", ncols=len(points), frameon=False)
    axes.grid(alpha=0.18, linewidth=0.6, color=INK)
    return figure


def _bars(metrics: dict[str, Any], key: str, value: float) -> list[list[float]] | None:
    interval = metrics.get("intervals", {}).get(key)
    if not interval:
        return None
    return [[100 * max(value - interval[0], 0)], [100 * max(interval[1] - value, 0)]]


def _curves(arms: dict[str, ArmReport], prefixes: tuple[str, ...]) -> "Figure | None":
    found = {key for arm in arms.values() for row in arm.log for key in row if key.startswith(prefixes)}
    order = list(PANEL_TITLES)
    keys = sorted(found, key=lambda key: (order.index(key) if key in order else len(order), key))
    series = {key: {name: _series(arm.log, key) for name, arm in arms.items()} for key in keys}
    keys = [key for key in keys if any(len(steps) > 1 for steps, _ in series[key].values())]
    if not keys:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(9.2 if columns == 3 else 3.4 * columns, 0.45 + 2.0 * rows), layout="constrained")
    colours = arm_colours(arms)
    handles: dict[str, Any] = {}
    for place, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(_plain(PANEL_TITLES.get(key, key)), loc="left")
        for name, (steps, values) in series[key].items():
            if steps:
                handles[name] = _curve(axes, steps, values, colours[name])
        axes.grid(alpha=0.15, linewidth=0.6, color=INK)
        if place // columns == rows - 1:
            axes.set_xlabel("student update")
    labels = [_plain(arms[name].label) for name in handles]
    figure.legend(list(handles.values()), labels, loc="outside upper left", ncols=len(handles), frameon=False)
    return figure


def _curve(axes: "Axes", steps: list[float], values: list[float], colour: str) -> Any:
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    return axes.plot(steps, _smooth(values), color=colour, linewidth=1.5)[0]


def _series(log: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged quantity, without the lines that lack it."""
    pairs = [(_number(row, "step"), _number(row, key)) for row in log]
    kept = [(step, value) for step, value in pairs if step is not None and value is not None]
    return [step for step, _ in kept], [value for _, value in kept]


def _smooth(values: list[float]) -> list[float]:
    """Centred moving average over about a fifteenth of the run."""
    half = max(1, len(values) // 30)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _plain(text: str) -> str:
    """Text without mathtext: a dollar in a name would otherwise start a formula."""
    return text.replace("$", r"\$")
