"""The report: one HTML file with everything in it, for a reader who knows nothing of the project."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.files import require_writable, write_text
from dpdmd.report.galleries import prompt_rows
from dpdmd.report.plots import Plot, arm_colours, draw_plots
from dpdmd.report.runs import ArmReport, read_runs
from dpdmd.report.summary import duration, percent, summary_sentences

DEFAULT_TITLE = "Few-step students and their teacher"


@dataclass(frozen=True)
class Column:
    """One column of the table: metric, heading, what it means in one line, and how its numbers are written."""

    key: str
    heading: str
    explanation: str
    style: str


COLUMNS = (
    Column("num_inference_steps", "steps", "Network steps to draw one image.", "count"),
    Column(
        "diversity_share",
        "diversity kept",
        "Diversity as a share of the teacher's on the same prompts and seeds; 100 % is as diverse as the teacher.",
        "percent",
    ),
    Column(
        "prompts_near_reference",
        "prompts near",
        "Share of prompts whose diversity is within 20 % of the teacher's. 100 % kept in the mean may hide that some "
        "prompts collapse while others wander off.",
        "percent",
    ),
    Column(
        "diversity",
        "diversity",
        "How different the images of one prompt are: 1 minus the mean cosine similarity of their features, "
        "over all pairs; 0 means all alike.",
        "decimal",
    ),
    Column(
        "named_accuracy",
        "prompt followed",
        "Share of what the prompts name (shape, colour, size, background) that is drawn right.",
        "percent",
    ),
    Column("validity", "valid", "Share of images that are a clean scene of the built-in world.", "percent"),
    Column(
        "effective_modes",
        "effective modes",
        "How many different values a factor that the prompt leaves open takes, weighted by how evenly (exponential of "
        "the entropy, mean over factors); read from the images themselves, so overdriven colours do not raise it.",
        "decimal1",
    ),
    Column(
        "total_variation_true",
        "off the truth",
        "Distance (total variation, 0 to 1) of what is left open from the world's own distribution; few images "
        "alone give some.",
        "decimal",
    ),
    Column(
        "total_variation_reference",
        "off the teacher",
        "The same distance to what the teacher leaves open: a student can be diverse and still draw other things.",
        "decimal",
    ),
    Column("frechet", "Frechet", "Distance of all images to the teacher's in feature space; 0 is the same.", "decimal"),
    Column(
        "saturation",
        "saturated",
        "Share of colour values that are exactly 0 or 255: above the teacher's, colours are overdriven.",
        "percent1",
    ),
    Column("seconds", "time", "Wall-clock time of this row, training included where it was trained.", "duration"),
    Column("peak_memory_bytes", "memory", "Largest memory use while the row was made.", "bytes"),
)


def build_report(
    out: str | Path,
    *,
    title: str = DEFAULT_TITLE,
    arms: dict[str, ArmReport],
    provenance: dict[str, Any] | None = None,
    max_prompts: int = 24,
) -> Path:
    """Write the report to `out` (.html) and its figures as PNG to `report_files/` beside it; returns `out`.

    arms: the rows by name; "teacher", "teacher_few_steps", "dmd" and "dp_dmd" are known and compared, others shown.
    provenance: what to know to repeat it (recipe, versions, commit, seeds ...), shown as it is.
    Whatever a row lacks (images, metrics, log) is left out. Without matplotlib the figures are left out, and the page
    says so. Raises ValueError when there are no rows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not arms:
        raise ValueError("a report needs at least one row")
    out = Path(out)
    plots, plots_note = _plots(arms, out.parent / "report_files")
    rows = prompt_rows(arms, max_prompts=max_prompts)
    columns = [column for column in COLUMNS if any(_value(arm, column.key) is not None for arm in arms.values())]
    environment = Environment(
        loader=PackageLoader("dpdmd.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(
        title=title,
        summary=summary_sentences(arms),
        arms=arms,
        colours=arm_colours(arms),
        chosen=[row for row in rows if row.reason] or rows[:6],
        others=[row for row in rows if not row.reason] if any(row.reason for row in rows) else rows[6:],
        columns=columns,
        cells={name: [_cell(arm, column) for column in columns] for name, arm in arms.items()},
        notes=_notes(arms),
        plots=plots,
        plots_note=plots_note,
        provenance=_provenance(arms, provenance or {}),
    )
    write_text(out, page)
    return out


def report_from_runs(
    runs: list[str | Path], out: str | Path, *, title: str = DEFAULT_TITLE, provenance: dict[str, Any] | None = None
) -> Path:
    """Write the report of run folders (see `read_runs`); returns `out`.

    Raises ValueError when a run is missing, broken or empty, OSError when `out` cannot be written.
    """
    require_writable(out, "the report")
    return build_report(out, title=title, arms=read_runs(runs), provenance=provenance)


def _plots(arms: dict[str, ArmReport], folder: Path) -> tuple[list[Plot], str]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [], 'Figures are left out: matplotlib is not installed (pip install "dpdmd[report]").'
    return draw_plots(arms, folder), ""


def _value(arm: ArmReport, key: str) -> float | None:
    value = arm.metrics.get(key)
    if value is None and arm.images and key == "num_inference_steps":
        value = arm.images.info.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cell(arm: ArmReport, column: Column) -> tuple[str, str]:
    """The figure and its interval as texts."""
    value = _value(arm, column.key)
    if value is None:
        return "", ""
    interval = arm.metrics.get("intervals", {}).get(column.key)
    if not interval or interval[0] == interval[1]:
        return _written(value, column.style), ""
    low, high = (_written(bound, column.style).removesuffix(" %") for bound in interval)
    return _written(value, column.style), f"{low} – {high}"


def _written(value: float, style: str) -> str:
    writers = {
        "count": lambda: f"{value:g}",
        "percent": lambda: percent(value),
        "percent1": lambda: f"{100 * value:.1f} %",
        "decimal": lambda: f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}",
        "decimal1": lambda: f"{value:.2f}",
        "duration": lambda: duration(value),
        "bytes": lambda: f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB",
    }
    return writers[style]()


def _notes(arms: dict[str, ArmReport]) -> list[str]:
    """What a reader must know to trust the table, where it applies."""
    notes = []
    if any(arm.metrics.get("intervals") for arm in arms.values()):
        notes.append(
            "Small figures are 95 % bootstrap intervals over prompts: how far the figure would move with other "
            "prompts. Every student was trained once; another training seed moves it further."
        )
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
