"""The plots of a report, by matplotlib: inline SVG that follows the page's colours, and their numbers as CSV."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from dpdmd.report.colours import INK, arm_colours, follow_page
from dpdmd.report.comparison import Comparison
from dpdmd.report.curves import curve_rows, curves
from dpdmd.report.pareto import pareto, pareto_rows
from dpdmd.report.points import outside, quality_metric, spread, spread_rows, trade_off, trade_off_rows
from dpdmd.report.runs import ArmReport
from dpdmd.report.spreadsheet import Download, download
from dpdmd.report.target import EXPLANATION

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

LOSSES, HEALTH = ("loss/",), ("health/", "sample/", "grad_norm/")
VALIDATION = ("validation/diversity_share", "validation/quality", "validation/saturation")
# Inches. The page shows one inch as at least 88 pixels, so that text of 9 points is 11 pixels high at least.
WIDE, NARROW, PANEL = (7.8, 4.6), (3.9, 3.9), (3.9, 2.3)


@dataclass(frozen=True)
class Panel:
    """One drawing of a plot: its title ("" if the plot has one panel), and the SVG to inline."""

    title: str
    svg: str


@dataclass(frozen=True)
class Plot:
    """A plot: heading, how to read it, its panels, those that a narrow screen shows instead, and its numbers."""

    name: str
    heading: str
    explanation: str
    panels: list[Panel]
    narrow: list[Panel]
    numbers: Download


Figures = dict[str, "Figure"]


@dataclass(frozen=True)
class _Drawing:
    """How a plot is made, and the numbers in it. narrow: makes what a narrow screen shows, None for the same."""

    name: str
    heading: str
    explanation: str
    draw: Callable[[], Figures]
    rows: Callable[[], list[dict[str, Any]]]
    narrow: Callable[[], Figures] | None = None


def trade_off_plots(arms: dict[str, ArmReport], comparison: Comparison | None = None) -> list[Plot]:
    """Diversity against quality, and diversity kept by each prompt; a comparison has the plot of `pareto`."""
    first = _pareto(arms, comparison) if comparison is not None else _points(arms)
    of_seed = "" if comparison is None else f" Shown for {comparison.shown}."
    every_prompt = _Drawing(
        "spread",
        "Every prompt's diversity",
        "Each line shows all prompts of one student, sorted by the diversity kept. A flat line near the dashed one, "
        f"the teacher, is good. One that starts low has prompts that collapsed, whatever its mean.{of_seed}",
        lambda: _one(spread(arms, NARROW)),
        lambda: spread_rows(arms),
    )
    return _drawn([first, every_prompt])


def training_plots(arms: dict[str, ArmReport], comparison: Comparison | None = None) -> list[Plot]:
    """Curves of what training logged."""
    of_seed = "" if comparison is None else f" Shown for {comparison.shown}."
    how = f"Pale: every update. Strong: moving average.{of_seed} "
    kinds = (
        (
            "validation",
            "Validation while it trained",
            "Measured on the few images that a run draws while it trains, so look at the trend.",
            VALIDATION,
        ),
        (
            "losses",
            "Losses",
            how + "Losses of different objectives have no common scale, so look at the trend.",
            LOSSES,
        ),
        (
            "health",
            "Health",
            how
            + "Cosine, gap and ratio compare the teacher's score with the fake score on the student's images: jumps "
            "mean unstable training. Growing saturation means that colours leave the valid range.",
            HEALTH,
        ),
    )
    return _drawn(
        [
            _Drawing(
                name,
                heading,
                explanation,
                lambda prefixes=prefixes: curves(arms, prefixes, PANEL),
                lambda prefixes=prefixes: curve_rows(arms, prefixes),
            )
            for name, heading, explanation, prefixes in kinds
        ]
    )


def _pareto(arms: dict[str, ArmReport], comparison: Comparison) -> _Drawing:
    colours = arm_colours(arms)
    return _Drawing(
        "pareto",
        "Diversity against quality",
        f"{comparison.caption} {EXPLANATION}",
        lambda: _one(pareto(comparison, colours, WIDE)),
        lambda: pareto_rows(comparison),
        lambda: _one(pareto(comparison, colours, NARROW)),
    )


def _points(arms: dict[str, ArmReport]) -> _Drawing | None:
    quality = quality_metric(arms)
    if quality is None:
        return None
    missing = outside(arms, quality)
    beyond = f" Outside of the plot: {'; '.join(missing)}." if missing else ""
    return _Drawing(
        "trade_off",
        "Diversity against quality",
        f"Each point is an arm, bars are 95 % intervals. Right: more of the teacher's diversity. Up: better quality, "
        f'here "{quality.heading}". {EXPLANATION}{beyond}',
        lambda: _one(trade_off(arms, quality, WIDE)),
        lambda: trade_off_rows(arms, quality),
        lambda: _one(trade_off(arms, quality, NARROW)),
    )


def _one(figure: "Figure | None") -> Figures:
    return {} if figure is None else {"": figure}


def _drawn(drawings: list[_Drawing | None]) -> list[Plot]:
    plots = []
    for drawing in drawings:
        if drawing is None or not (panels := _panels(drawing, drawing.draw, drawing.name)):
            continue
        narrow = _panels(drawing, drawing.narrow, f"{drawing.name}-narrow") if drawing.narrow else []
        numbers = download(drawing.name, drawing.rows())
        plots.append(Plot(drawing.name, drawing.heading, drawing.explanation, panels, narrow, numbers))
    return plots


def _panels(drawing: _Drawing, draw: Callable[[], Figures], prefix: str) -> list[Panel]:
    """The panels of a plot. prefix: of the names in their SVG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style: dict[RcKeyType, Any] = {
        "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.titlesize": 9, "axes.linewidth": 0.6, "svg.fonttype": "none", "svg.hashsalt": prefix,
    }  # fmt: skip
    panels = []
    with matplotlib.rc_context(style):
        for number, (title, figure) in enumerate(draw().items()):
            FigureCanvasAgg(figure)
            text = StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            panels.append(Panel(title, _inline(text.getvalue(), f"{prefix}-{number}", title or drawing.heading)))
    return panels


def _inline(svg: str, prefix: str, name: str) -> str:
    """An SVG file as part of an HTML page: without declarations and addresses, in page colours and the page's font,
    with unique ids and a name for screen readers."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = follow_page(svg).replace("xlink:href", "href")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)
