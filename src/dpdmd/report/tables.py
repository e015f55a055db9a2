"""Tables of a report, one for each question: a line for each metric, a column for each arm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpdmd.evaluate.metrics import (
    COST,
    DIVERSITY,
    GROUPS,
    LIKENESS,
    METRICS,
    QUALITY,
    REFERENCE,
    SAMPLING,
    STABILITY,
    Metric,
    metric_of,
)
from dpdmd.evaluate.words import writer
from dpdmd.report.runs import ArmReport, is_number

# Numbers of metrics.json that measure nothing, or that the page shows elsewhere.
UNSHOWN = ("num_prompts", "images_per_prompt", "total_variation_floor")
OTHERS = "Other metrics"
QUESTIONS = {
    DIVERSITY: "Are its pictures as varied as the teacher's?",
    LIKENESS: "Are they the pictures that the teacher would draw?",
    QUALITY: "How good is each picture?",
    SAMPLING: "How fast does it draw?",
    COST: "What did training cost?",
    STABILITY: "How steadily did it train?",
    OTHERS: "What else was measured?",
}


@dataclass(frozen=True)
class Cell:
    """One metric of one arm: its value and interval, and both as texts."""

    value: float | None
    interval: tuple[float, float] | None
    text: str = ""
    between: str = ""


@dataclass(frozen=True)
class Table:
    """A table. group: of its metrics; arms: names of its columns; lines: {metric: a cell for each arm}."""

    group: str
    heading: str
    arms: list[str]
    lines: dict[Metric, list[Cell]]
    network: str = ""


def make_tables(arms: dict[str, ArmReport]) -> list[Table]:
    """A table for each question of which an arm has a metric, then those of further feature networks."""
    metrics = _shown_metrics(arms)
    tables = [
        make_table(group, heading, [metric for metric in metrics if metric.group == group], arms)
        for group, heading in QUESTIONS.items()
    ]
    for network, measured in _further_features(arms).items():
        table = make_table(OTHERS, f"Measured with {network}", _shown_metrics(measured), measured)
        tables.append(table and replace(table, network=network))
    return [table for table in tables if table is not None]


def make_table(group: str, heading: str, metrics: Sequence[Metric], arms: dict[str, ArmReport]) -> Table | None:
    """The metrics and arms that have a number; None when there are none."""
    cells = {metric: [_cell(report, metric) for report in arms.values()] for metric in metrics}
    lines = {
        metric: _written(own, metric) for metric, own in cells.items() if any(cell.value is not None for cell in own)
    }
    return Table(group, heading, list(arms), lines) if lines else None


def table_rows(tables: list[Table], arms: dict[str, ArmReport]) -> list[dict[str, Any]]:
    """All tables as rows of a CSV file, one for each metric and arm, unrounded."""
    return [
        {"arm": arms[arm].label}
        | ({"network": table.network} if table.network else {})
        | {
            "metric": metric.key,
            "value": cell.value,
            "low": cell.interval and cell.interval[0],
            "high": cell.interval and cell.interval[1],
        }
        for table in tables
        for metric, cells in table.lines.items()
        for arm, cell in zip(table.arms, cells, strict=True)
        if cell.value is not None
    ]


def _shown_metrics(arms: dict[str, ArmReport]) -> list[Metric]:
    """The known metrics, then every number of an arm that the table of metrics lacks, called by its key.

    "reference_..." is left out where an arm called "teacher" shows the same.
    """
    keys = dict.fromkeys(key for arm in arms.values() for key, value in arm.metrics.items() if is_number(value))
    known = {metric.key for metric in METRICS} | set(UNSHOWN)
    others = [key for key in keys if key not in known and not key.endswith("_failures")]
    if "teacher" in arms:
        others = [key for key in others if not key.startswith(REFERENCE)]
    further = [replace(metric_of(key), group=metric_of(key.removeprefix(REFERENCE)).group or OTHERS) for key in others]
    ordered = [metric for group in GROUPS for metric in GROUPS[group]]
    return [*ordered, *further]


def _further_features(arms: dict[str, ArmReport]) -> dict[str, dict[str, ArmReport]]:
    """The arms as measured with further feature networks, by network."""
    measured: dict[str, dict[str, ArmReport]] = {}
    for name, arm in arms.items():
        further = arm.metrics.get("further_features")
        for network, metrics in (further if isinstance(further, dict) else {}).items():
            measured.setdefault(network, {})[name] = replace(arm, metrics=metrics, images=None)
    return measured


def _cell(arm: ArmReport, metric: Metric) -> Cell:
    value = arm.metrics.get(metric.key)
    if value is None and arm.images and metric.key == "num_inference_steps":
        value = arm.images.info.get(metric.key)
    if not is_number(value):
        return Cell(None, None)
    bounds = (arm.metrics.get("intervals") or {}).get(metric.key)
    return Cell(value, (bounds[0], bounds[1]) if bounds else None)


def _written(cells: list[Cell], metric: Metric) -> list[Cell]:
    """The cells of a row with their texts, all with the same digits."""
    own = [cell.value for cell in cells if cell.value is not None]
    bounds = [bound for cell in cells if cell.interval for bound in cell.interval if is_number(bound)]
    write = writer(metric.style, [*own, *bounds])

    def texts(cell: Cell) -> Cell:
        if cell.value is None:
            return cell
        if cell.interval is None or cell.interval[0] == cell.interval[1] or not all(map(is_number, cell.interval)):
            return replace(cell, text=write(cell.value))
        low, high = (write(bound).removesuffix(" %").removesuffix(" ×") for bound in cell.interval)
        return replace(cell, text=write(cell.value), between=f"{low} – {high}")

    return [texts(cell) for cell in cells]
