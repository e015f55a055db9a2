"""The report: one self-contained HTML file, for a reader who knows nothing of the project."""

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpdmd.evaluate.metrics import COST, GROUPS, REFERENCE, STABILITY, metric_of
from dpdmd.report.colours import arm_colours
from dpdmd.report.comparison import COMPARISON_FILE, ONE_SEED, Comparison, read_comparison
from dpdmd.report.galleries import PromptGalleries, prompt_galleries, write_overview_png
from dpdmd.report.plots import Plot, draw_plots
from dpdmd.report.prompts import prompt_data, prompt_table_rows
from dpdmd.report.provenance import provenance_facts, provenance_files
from dpdmd.report.runs import ArmReport, encodable, is_number, read_runs
from dpdmd.report.spreadsheet import write_rows
from dpdmd.report.summary import summary_sentences
from dpdmd.report.tables import Table, make_table, shown_metrics, table_rows
from dpdmd.store.files import is_stream, require_writable, write_text

DEFAULT_TITLE = "Few-step students and their teacher"
FILES = "report_files"
# Plots of scores come before the tables; curves of training come after the prompts.
OF_SCORES = ("pareto", "trade_off", "spread")


def build_report(
    out: str | Path,
    *,
    title: str = DEFAULT_TITLE,
    arms: dict[str, ArmReport],
    comparison: Comparison | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write the report to `out` (.html) and its files to `report_files/` next to it; returns `out`.

    The files are every plot as PNG and CSV, every table as CSV, and the galleries as one PNG.
    arms: by name; "teacher", "teacher_few_steps", "dmd" and "dp_dmd" have their own labels and colours, and the last
    two are compared in words. comparison: what several training seeds under one budget add. provenance: texts or JSON
    needed to repeat the report, shown as they are.
    What an arm lacks (images, metrics, log) is left out. Without matplotlib there are no plots, and the page says so.
    Raises ValueError when there is no arm.
    """
    if not arms:
        raise ValueError("a report needs at least one arm")
    out = Path(out)
    with _files_folder(out) as folder:
        page = _page(folder, title, arms, comparison, provenance or {})
    write_text(out, encodable(page))
    return out


@contextmanager
def _files_folder(out: Path) -> Iterator[Path]:
    """The folder of the report's files. A page that goes into a pipe or device has none that stays."""
    if not is_stream(out):
        yield out.parent / FILES
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _page(
    folder: Path, title: str, arms: dict[str, ArmReport], comparison: Comparison | None, provenance: dict[str, Any]
) -> str:
    """The page; writes its files to `folder`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    plots, plots_note = _plots(arms, comparison, folder)
    tables = _tables(arms, comparison)
    galleries = prompt_galleries(arms)
    chosen = [of_prompt for of_prompt in galleries if of_prompt.reason] or galleries[:6]
    _write_tables(folder, tables, arms)
    _write_galleries(folder / "galleries.png", galleries, arms)
    environment = Environment(
        loader=PackageLoader("dpdmd.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = arm_colours(arms)
    script = _resource("page.js")
    return environment.get_template("template.html").render(
        title=title,
        policy=_policy(script),
        style=_resource("page.css"),
        script=script,
        files=FILES,
        summary=[*(comparison.sentences if comparison else []), *summary_sentences(arms)],
        arms=arms,
        colours=colours,
        comparison=comparison,
        plots=[plot for plot in plots if plot.name in OF_SCORES],
        curves=[plot for plot in plots if plot.name not in OF_SCORES],
        plots_note=plots_note,
        tables=tables,
        chosen=chosen,
        others=[of_prompt for of_prompt in galleries if of_prompt not in chosen],
        num_prompts=_num_prompts(arms),
        prompts=prompt_data(arms, colours),
        facts=provenance_facts(arms),
        provenance=provenance_files(arms, provenance),
    )


def report_from_runs(
    runs: list[str | Path], out: str | Path, *, title: str | None = None, provenance: dict[str, Any] | None = None
) -> Path:
    """Write the report of run folders (see `read_runs`) or of the folder of one comparison; returns `out`.

    Raises ValueError when a run is missing, broken or empty, and OSError when `out` cannot be written.
    """
    require_writable(out, "the report")
    if len(runs) == 1 and (Path(runs[0]) / COMPARISON_FILE).exists():
        comparison = read_comparison(runs[0])
        provenance = comparison.provenance | (provenance or {})
        return build_report(
            out, title=title or comparison.title, arms=comparison.arms, comparison=comparison, provenance=provenance
        )
    return build_report(out, title=title or DEFAULT_TITLE, arms=read_runs(runs), provenance=provenance)


def _resource(name: str) -> str:
    return files("dpdmd.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """The Content-Security-Policy: this one script, images embedded in the page, nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plots(arms: dict[str, ArmReport], comparison: Comparison | None, folder: Path) -> tuple[list[Plot], str]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [], 'There are no plots: matplotlib is not installed (pip install "dpdmd[report]").'
    return draw_plots(arms, folder, comparison), ""


def _tables(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[Table]:
    tables = [make_table("numbers", "Metrics", shown_metrics(arms), arms, _notes(arms, comparison))]
    for number, (network, measured) in enumerate(_further_features(arms).items(), start=1):
        tables.append(make_table(f"numbers_{number}", f"Measured with {network}", shown_metrics(measured), measured))
    tables += [
        make_table("cost", COST, GROUPS[COST], arms),
        make_table("stability", STABILITY, GROUPS[STABILITY], arms),
    ]
    return [table for table in tables if table is not None]


def _further_features(arms: dict[str, ArmReport]) -> dict[str, dict[str, ArmReport]]:
    """The arms as measured with further feature networks, by network."""
    measured: dict[str, dict[str, ArmReport]] = {}
    for name, arm in arms.items():
        further = arm.metrics.get("further_features")
        for network, metrics in (further if isinstance(further, dict) else {}).items():
            measured.setdefault(network, {})[name] = replace(arm, metrics=metrics, images=None)
    return measured


def _notes(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = []
    if comparison is not None:
        notes.append(comparison.intervals)
    elif any(arm.metrics.get("intervals") for arm in arms.values()):
        notes.append(ONE_SEED)
    if any(arm.metrics.get("frechet_reliable") is False for arm in arms.values()):
        notes.append("Do not rely on the Frechet distances: there are fewer images than the features have dimensions.")
    for arm in arms.values():
        skipped = arm.metrics.get("skipped")
        for what, why in (skipped if isinstance(skipped, dict) else {}).items():
            notes.append(f"{arm.label}: {what} left out, because {why}.")
        for key, number in arm.metrics.items():
            if key.endswith("_failures") and not key.startswith(REFERENCE) and is_number(number) and number > 0:
                what = metric_of(key.removesuffix("_failures")).heading
                notes.append(f"{arm.label}: {number:.0f} images have no {what} and are left out of its mean.")
    return notes


def _write_tables(folder: Path, tables: list[Table], arms: dict[str, ArmReport]) -> None:
    for table in tables:
        write_rows(folder / f"{table.name}.csv", table_rows(table, arms))
    rows = prompt_table_rows(arms)
    if rows:
        write_rows(folder / "prompts.csv", rows)


def _write_galleries(path: Path, galleries: list[PromptGalleries], arms: dict[str, ArmReport]) -> None:
    chosen = [one.prompt for one in galleries if one.reason] or [one.prompt for one in galleries]
    if chosen:
        write_overview_png(path, arms, prompts=chosen if len(chosen) <= 6 else chosen[:4] + chosen[-2:])


def _num_prompts(arms: dict[str, ArmReport]) -> int:
    return max((len({entry.prompt for entry in arm.images.images}) for arm in arms.values() if arm.images), default=0)
