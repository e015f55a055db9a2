"""The figures of a report: matplotlib drawings as inline SVG that follows the page's colours, as PNG and as CSV."""

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

LOSSES, HEALTH = ("loss/",), ("health/", "sample/", "grad_norm/")
VALIDATION = ("validation/diversity_share", "validation/quality", "validation/saturation")


@dataclass(frozen=True)
class Plot:
    """One figure: file name without suffix, heading, one sentence on how to read it, and the SVG to inline."""

    name: str
    heading: str
    explanation: str
    svg: str


@dataclass(frozen=True)
class _Drawing:
    """What a figure is made by, and the numbers in it."""

    name: str
    heading: str
    explanation: str
    draw: Callable[[], "Figure | None"]
    rows: Callable[[], list[dict[str, Any]]]


def draw_plots(arms: dict[str, ArmReport], folder: Path, comparison: Comparison | None = None) -> list[Plot]:
    """All figures for which there are numbers, the picture of diversity against quality first; each is also written to
    `folder` as PNG and CSV.

    A comparison has the picture of `pareto` instead of the rows' end points, and curves of one of its seeds.
    """
    plots = []
    for drawing in _drawings(arms, comparison):
        svg = _drawn(drawing, folder)
        if svg:
            write_rows(folder / f"{drawing.name}.csv", drawing.rows())
            plots.append(Plot(drawing.name, drawing.heading, drawing.explanation, svg))
    return plots


def _drawings(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[_Drawing]:
    of_seed = "" if comparison is None else f"Of {comparison.shown}. "
    how = f"Pale: every update; strong: moving average. {of_seed}"
    first = _trade_off(arms)
    if comparison is not None:
        first = _Drawing(
            "pareto",
            "Diversity against quality",
            comparison.picture,
            lambda: pareto(comparison, arm_colours(arms)),
            lambda: pareto_rows(comparison),
        )
    drawings = [
        first,
        _Drawing(
            "spread",
            "Diversity kept, prompt by prompt",
            "Every line has all prompts, sorted by what was kept of the teacher's diversity (dashed). Flat and near "
            "the dashed line is good; a line that begins low has prompts that collapse, whatever its mean. " + of_seed,
            lambda: spread(arms),
            lambda: spread_rows(arms),
        ),
        _Drawing(
            "losses",
            "Losses",
            how + "Losses of different objectives have no common scale: look at the trend.",
            lambda: curves(arms, LOSSES),
            lambda: curve_rows(arms, LOSSES),
        ),
        _Drawing(
            "health",
            "Health",
            how + "The cosine, gap and ratio compare the teacher's score with the fake score on the student's images: "
            "jumps mean unstable training. Growing saturation: colours leave the valid range.",
            lambda: curves(arms, HEALTH),
            lambda: curve_rows(arms, HEALTH),
        ),
        _Drawing(
            "validation",
            "Validation while training",
            "Of the few images that a run draws of its student on the way: few, so look at the trend. " + of_seed,
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
        "Each point is a row of the table, bars are 95 % intervals over prompts. Right: keeps more of the teacher's "
        f'diversity. Up: better quality, here "{quality.heading}" of the table. A good student is right and up.',
        lambda: trade_off(arms, quality),
        lambda: trade_off_rows(arms, quality),
    )


def _drawn(drawing: _Drawing, folder: Path) -> str | None:
    """The figure's SVG; its PNG is written."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {
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
    """An SVG file as part of an HTML page: no declarations, no addresses, page colours, ids of its own, a name that is
    read aloud."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{drawing.name}-", svg)
    svg = follow_page(svg).replace("xlink:href", "href")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.heading)}"', 1)
