"""The report: one HTML file with everything in it, for a reader who knows nothing of the project."""

import json
from pathlib import Path
from typing import Any

from dpdmd.files import require_writable, write_text
from dpdmd.report.comparison import COMPARISON_FILE, ONE_SEED, Comparison, read_comparison
from dpdmd.report.galleries import prompt_rows
from dpdmd.report.plots import Plot, arm_colours, draw_plots
from dpdmd.report.runs import ArmReport, read_runs
from dpdmd.report.summary import summary_sentences
from dpdmd.report.tables import COST, NUMBERS, STABILITY, Table, make_table

DEFAULT_TITLE = "Few-step students and their teacher"


def build_report(
    out: str | Path,
    *,
    title: str = DEFAULT_TITLE,
    arms: dict[str, ArmReport],
    comparison: Comparison | None = None,
    provenance: dict[str, Any] | None = None,
    max_prompts: int = 24,
) -> Path:
    """Write the report to `out` (.html) and its figures as PNG to `report_files/` beside it; returns `out`.

    arms: the rows by name; "teacher", "teacher_few_steps", "dmd" and "dp_dmd" are known and compared, others shown.
    comparison: what several training seeds and a budget add; its picture and tables then come first.
    provenance: what to know to repeat it (recipe, versions, commit, seeds ...), shown as it is.
    Whatever a row lacks (images, metrics, log) is left out. Without matplotlib the figures are left out, and the page
    says so. Raises ValueError when there are no rows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not arms:
        raise ValueError("a report needs at least one row")
    out = Path(out)
    plots, plots_note = _plots(arms, comparison, out.parent / "report_files")
    rows = prompt_rows(arms, max_prompts=max_prompts)
    environment = Environment(
        loader=PackageLoader("dpdmd.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(
        title=title,
        summary=[*(comparison.sentences if comparison else []), *summary_sentences(arms)],
        arms=arms,
        colours=arm_colours(arms),
        chosen=[row for row in rows if row.reason] or rows[:6],
        others=[row for row in rows if not row.reason] if any(row.reason for row in rows) else rows[6:],
        comparison=comparison,
        comparison_plot=next((plot for plot in plots if plot.name == "pareto"), None),
        tables=_tables(arms, comparison),
        plots=[plot for plot in plots if plot.name != "pareto"],
        plots_note=plots_note,
        provenance=_provenance(arms, provenance or {}),
    )
    write_text(out, page)
    return out


def report_from_runs(
    runs: list[str | Path], out: str | Path, *, title: str | None = None, provenance: dict[str, Any] | None = None
) -> Path:
    """Write the report of run folders (see `read_runs`), or of the folder of one comparison; returns `out`.

    Raises ValueError when a run is missing, broken or empty, OSError when `out` cannot be written.
    """
    require_writable(out, "the report")
    if len(runs) == 1 and (Path(runs[0]) / COMPARISON_FILE).exists():
        comparison = read_comparison(runs[0])
        provenance = comparison.provenance | (provenance or {})
        return build_report(
            out, title=title or comparison.title, arms=comparison.arms, comparison=comparison, provenance=provenance
        )
    return build_report(out, title=title or DEFAULT_TITLE, arms=read_runs(runs), provenance=provenance)


def _plots(arms: dict[str, ArmReport], comparison: Comparison | None, folder: Path) -> tuple[list[Plot], str]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [], 'Figures are left out: matplotlib is not installed (pip install "dpdmd[report]").'
    return draw_plots(arms, folder, comparison), ""


def _tables(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[Table]:
    notes = _notes(arms, comparison)
    tables = [make_table("Numbers", NUMBERS, arms, notes)]
    if comparison is not None:
        tables += [make_table("Cost", COST, arms), make_table("Stability", STABILITY, arms)]
    return [table for table in tables if table is not None]


def _notes(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[str]:
    """What a reader must know to trust the table, where it applies."""
    notes = []
    if comparison is not None:
        notes.append(comparison.intervals)
    elif any(arm.metrics.get("intervals") for arm in arms.values()):
        notes.append(ONE_SEED)
    if any(arm.metrics.get("frechet_reliable") is False for arm in arms.values()):
        notes.append("Frechet distances rest on fewer images than the features have dimensions: do not rely on them.")
    for arm in arms.values():
        skipped = arm.metrics.get("skipped")
        for what, why in (skipped if isinstance(skipped, dict) else {}).items():
            notes.append(f"{arm.label}: {what} left out: {why}.")
    return notes


def _provenance(arms: dict[str, ArmReport], given: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and texts, the given ones first."""
    rows = [(name, value if isinstance(value, str) else _as_json(value)) for name, value in given.items()]
    for arm in arms.values():
        if arm.images and arm.images.info:
            rows.append((f"{arm.label}: samples", _as_json(arm.images.info)))
        if arm.metrics.get("provenance"):
            rows.append((f"{arm.label}: evaluation", _as_json(arm.metrics["provenance"])))
        rows += [(f"{arm.label}: {name}", text) for name, text in arm.settings.items()]
    return rows


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
