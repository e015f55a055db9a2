"""Tables of a report: a row per figure, a column per arm, and what each figure means in one line."""

from dataclasses import dataclass
from typing import Any

from dpdmd.report.columns import Column
from dpdmd.report.runs import ArmReport, is_number
from dpdmd.report.summary import duration, percent


@dataclass(frozen=True)
class Cell:
    """One figure of one arm: its value and interval, and both as texts."""

    value: float | None
    interval: tuple[float, float] | None
    text: str
    between: str


@dataclass(frozen=True)
class Table:
    """A table. name: of its CSV file; arms: names of its columns; lines: {a figure: a cell per arm}."""

    name: str
    heading: str
    arms: list[str]
    lines: dict[Column, list[Cell]]
    notes: list[str]


def make_table(
    name: str,
    heading: str,
    columns: tuple[Column, ...] | list[Column],
    arms: dict[str, ArmReport],
    notes: list[str] | None = None,
) -> Table | None:
    """The figures and arms that have a number; None when there are none."""
    cells = {column: {arm: _cell(report, column) for arm, report in arms.items()} for column in columns}
    cells = {c: row for c, row in cells.items() if any(cell.value is not None for cell in row.values())}
    if not cells:
        return None
    shown = [arm for arm in arms if any(row[arm].value is not None for row in cells.values())]
    return Table(name, heading, shown, {c: [row[arm] for arm in shown] for c, row in cells.items()}, notes or [])


def table_rows(table: Table, arms: dict[str, ArmReport]) -> list[dict[str, Any]]:
    """The table with a row for each arm and figure, unrounded."""
    return [
        {
            "arm": arms[arm].label,
            "figure": column.key,
            "value": cell.value,
            "low": cell.interval and cell.interval[0],
            "high": cell.interval and cell.interval[1],
        }
        for column, cells in table.lines.items()
        for arm, cell in zip(table.arms, cells, strict=True)
        if cell.value is not None
    ]


def written(value: float, style: str) -> str:
    """A figure as text, in one of the styles of columns."""
    writers = {
        "count": lambda: f"{value:,.0f}" if value == round(value) else f"{value:,.1f}",
        "percent": lambda: percent(value),
        "percent1": lambda: f"{100 * value:.1f} %",
        "decimal": lambda: f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}",
        "tenths": lambda: f"{value:.1f}",
        "figure": lambda: f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}",
        "seconds": lambda: f"{value:.2f} s",
        "duration": lambda: duration(value),
        "parameters": lambda: f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,.0f}",
        "bytes": lambda: f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB",
    }
    return writers[style]()


def _cell(arm: ArmReport, column: Column) -> Cell:
    value = arm.metrics.get(column.key)
    if value is None and arm.images and column.key == "num_inference_steps":
        value = arm.images.info.get(column.key)
    if not is_number(value):
        return Cell(None, None, "", "")
    bounds = (arm.metrics.get("intervals") or {}).get(column.key)
    interval = (bounds[0], bounds[1]) if bounds else None
    if interval is None or interval[0] == interval[1]:
        return Cell(value, interval, written(value, column.style), "")
    low, high = (written(bound, column.style).removesuffix(" %") for bound in interval)
    return Cell(value, interval, written(value, column.style), f"{low} – {high}")
