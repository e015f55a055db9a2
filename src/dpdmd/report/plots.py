"""The plots of a report, by matplotlib: as inline SVG that follows the page's colours, as PNG and as CSV."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdmd.report.colours import INK, arm_colours, follow_page
from dpdmd.report.comparison import Comparison
from dpdmd.report.curves import curve_rows, curves
from dpdmd.report.pareto import pareto, pareto_rows
from dpdmd.report.points import quality_metric, spread, spread_rows, trade_off, trade_off_rows
from dpdmd.report.runs import ArmReport
from dpdmd.report.spreadsheet import write_rows
from dpdmd.store.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

LOSSES, HEALTH = ("loss/",), ("health/", "sample/", "grad_norm/")
VALIDATION = ("validation/diversity_share", "validation/quality", "validation/saturation")


@dataclass(frozen=True)
class Plot:
    """One plot: file name without suffix, heading, how to read it, and the SVG to inline."""

    name: str
    heading: str
    explanation: str
    svg: str


@dataclass(frozen=True)
class _Drawing:
    """How a plot is made, and the numbers in it."""

    name: str
    heading: str
    explanation: str
    draw: Callable[[], "Figure | None"]
    rows: Callable[[], list[dict[str, Any]]]


def draw_plots(arms: dict[str, ArmReport], folder: Path, comparison: Comparison | None = None) -> list[Plot]:
    """All plots for which there are numbers, diversity against quality first; writes each to `folder` as PNG and CSV.

    A comparison has the plot of `pareto` instead of one point for each arm, and the curves of one of its seeds.
    """
    plots = []
    for drawing in _drawings(arms, comparison):
        svg = _drawn(drawing, folder)
        if svg:
            write_rows(folder / f"{drawing.name}.csv", drawing.rows())
            plots.append(Plot(drawing.name, drawing.heading, drawing.explanation, svg))
    return plots


def _drawings(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[_Drawing]:
    of_seed = "" if comparison is None else f"Shown for {comparison.shown}. "
    how = f"Pale: every update. Strong: moving average. {of_seed}"
    first = _trade_off(arms)
    if comparison is not None:
        first = _Drawing(
            "pareto",
            "Diversity against quality",
            comparison.caption,
            lambda: pareto(comparison, arm_colours(arms)),
            lambda: pareto_rows(comparison),
        )
    drawings = [
        first,
        _Drawing(
            "spread",
            "Diversity kept, prompt by prompt",
            "Each line shows all prompts of one arm, sorted by the diversity kept. A flat line near the "
            "dashed one, the teacher, is good. One that starts low has prompts that collapsed, whatever its mean. "
            + of_seed,
            lambda: spread(arms),
            lambda: spread_rows(arms),
        ),
        _Drawing(
            "losses",
            "Losses",
            how + "Losses of different objectives have no common scale, so look at the trend.",
            lambda: curves(arms, LOSSES),
            lambda: curve_rows(arms, LOSSES),
        ),
        _Drawing(
            "health",
            "Health",
            how
            + "Cosine, gap and ratio compare the teacher's score with the fake score on the student's images: jumps "
            "mean unstable training. Growing saturation means that colours leave the valid range.",
            lambda: curves(arms, HEALTH),
            lambda: curve_rows(arms, HEALTH),
        ),
        _Drawing(
            "validation",
            "Validation during training",
            "Measured on the few images that a run samples while it trains, so look at the trend. " + of_seed,
            lambda: curves(arms, VALIDATION),
            lambda: curve_rows(arms, VALIDATION),
        ),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _trade_off(arms: dict[str, ArmReport]) -> _Drawing | None:
    quality = quality_metric(arms)
    if quality is None:
        return None
    return _Drawing(
        "trade_off",
        f"Diversity against quality ({quality.heading})",
        "Each point is an arm, bars are 95 % intervals over prompts. Right: more of the teacher's diversity is kept. "
        f'Up: better quality, here "{quality.heading}" of the table below. The best students are at the top right.',
        lambda: trade_off(arms, quality),
        lambda: trade_off_rows(arms, quality),
    )


def _drawn(drawing: _Drawing, folder: Path) -> str | None:
    """Draw a plot, write its PNG and return its SVG; None when there is nothing to draw."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style: dict[RcKeyType, Any] = {
        "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.titlesize": 9, "axes.linewidth": 0.6, "svg.fonttype": "none", "svg.hashsalt": drawing.name,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = drawing.draw()
        if figure is None:
            return None
        FigureCanvasAgg(figure)
        with atomic_path(folder / f"{drawing.name}.png") as temporary:
            figure.savefig(temporary, dpi=160, facecolor="white", metadata={"Software": None})
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), drawing)


def _inline(svg: str, drawing: _Drawing) -> str:
    """An SVG file as part of an HTML page: without declarations and addresses, in page colours, with unique ids and
    a name for screen readers."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{drawing.name}-", svg)
    svg = follow_page(svg).replace("xlink:href", "href")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.heading)}"', 1)
