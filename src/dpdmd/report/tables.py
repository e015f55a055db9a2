"""Tables of a report: a line for each metric, a column for each arm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpdmd.evaluate.metrics import GROUPS, METRICS, REFERENCE, SAMPLING, SCORES, Metric, metric_of
from dpdmd.report.runs import ArmReport, is_number
from dpdmd.report.summary import duration, percent

# Numbers of metrics.json that measure nothing, or that the page shows elsewhere.
UNSHOWN = ("num_prompts", "images_per_prompt", "total_variation_floor")


@dataclass(frozen=True)
class Cell:
    """One metric of one arm: its value and interval, and both as texts."""

    value: float | None
    interval: tuple[float, float] | None
    text: str
    between: str


@dataclass(frozen=True)
class Table:
    """A table. name: of its CSV file; arms: names of its columns; lines: {metric: a cell for each arm}."""

    name: str
    heading: str
    arms: list[str]
    lines: dict[Metric, list[Cell]]
    notes: list[str]

    @property
    def has_groups(self) -> bool:
        """Whether its metrics have different headings."""
        return len({metric.group for metric in self.lines}) > 1


def shown_metrics(arms: dict[str, ArmReport]) -> list[Metric]:
    """Scores and sampling costs, then every number of an arm that the table of metrics lacks, called by its key.

    "reference_..." is left out where an arm called "teacher" shows the same.
    """
    keys = dict.fromkeys(key for arm in arms.values() for key, value in arm.metrics.items() if is_number(value))
    known = {metric.key for metric in METRICS} | set(UNSHOWN)
    others = [key for key in keys if key not in known and not key.endswith("_failures")]
    if "teacher" in arms:
        others = [key for key in others if not key.startswith(REFERENCE)]
    return [*SCORES, *GROUPS[SAMPLING], *(replace(metric_of(key), group="Other metrics") for key in others)]


def make_table(
    name: str, heading: str, metrics: Sequence[Metric], arms: dict[str, ArmReport], notes: Sequence[str] = ()
) -> Table | None:
    """The metrics and arms that have a number; None when there are none."""
    cells = {metric: {arm: _cell(report, metric) for arm, report in arms.items()} for metric in metrics}
    cells = {metric: own for metric, own in cells.items() if any(cell.value is not None for cell in own.values())}
    if not cells:
        return None
    shown = [arm for arm in arms if any(own[arm].value is not None for own in cells.values())]
    return Table(name, heading, shown, {m: [own[arm] for arm in shown] for m, own in cells.items()}, list(notes))


def table_rows(table: Table, arms: dict[str, ArmReport]) -> list[dict[str, Any]]:
    """The table as rows of a CSV file, one for each metric and arm, unrounded."""
    return [
        {
            "arm": arms[arm].label,
            "metric": metric.key,
            "value": cell.value,
            "low": cell.interval and cell.interval[0],
            "high": cell.interval and cell.interval[1],
        }
        for metric, cells in table.lines.items()
        for arm, cell in zip(table.arms, cells, strict=True)
        if cell.value is not None
    ]


def written(value: float, style: str) -> str:
    """A value as text, in one of the styles of metrics."""
    writers = {
        "count": lambda: f"{value:,.0f}" if value == round(value) else f"{value:,.1f}",
        "percent": lambda: percent(value),
        "percent1": lambda: f"{100 * value:.1f} %",
        "decimal": lambda: f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}",
        "tenths": lambda: f"{value:.1f}",
        "number": lambda: f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}",
        "seconds": lambda: f"{value:.2f} s",
        "duration": lambda: duration(value),
        "parameters": lambda: f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,.0f}",
        "bytes": lambda: f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB",
    }
    return writers[style]()


def _cell(arm: ArmReport, metric: Metric) -> Cell:
    value = arm.metrics.get(metric.key)
    if value is None and arm.images and metric.key == "num_inference_steps":
        value = arm.images.info.get(metric.key)
    if not is_number(value):
        return Cell(None, None, "", "")
    bounds = (arm.metrics.get("intervals") or {}).get(metric.key)
    interval = (bounds[0], bounds[1]) if bounds else None
    if interval is None or interval[0] == interval[1]:
        return Cell(value, interval, written(value, metric.style), "")
    low, high = (written(bound, metric.style).removesuffix(" %") for bound in interval)
    return Cell(value, interval, written(value, metric.style), f"{low} – {high}")
