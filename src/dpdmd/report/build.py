"""The report: one self-contained HTML file, for a reader who knows nothing of the project."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from dpdmd.evaluate.metrics import REFERENCE, metric_of
from dpdmd.report.colours import arm_colours
from dpdmd.report.commands import commands
from dpdmd.report.comparison import COMPARISON_FILE, ONE_SEED, Comparison, read_comparison
from dpdmd.report.galleries import prompt_galleries
from dpdmd.report.headline import large_numbers
from dpdmd.report.leads import leads
from dpdmd.report.picture import picture
from dpdmd.report.plots import trade_off_plots, training_plots
from dpdmd.report.prompts import prompt_data, prompt_table_rows
from dpdmd.report.provenance import provenance_facts, provenance_files
from dpdmd.report.runs import ArmReport, encodable, is_number, read_runs
from dpdmd.report.sizes import all_numbers, further_sizes, of_which_size
from dpdmd.report.spreadsheet import download
from dpdmd.report.summary import answers, unreliable_frechet
from dpdmd.report.tables import make_tables
from dpdmd.report.terms import Terms
from dpdmd.report.validation import films
from dpdmd.report.verdict import verdict
from dpdmd.store.files import require_writable, write_text

DEFAULT_TITLE = "A few-step student and its teacher"


def build_report(
    out: str | Path,
    *,
    title: str = DEFAULT_TITLE,
    arms: dict[str, ArmReport],
    comparison: Comparison | None = None,
    provenance: dict[str, Any] | None = None,
    sources: list[Path] | None = None,
) -> Path:
    """Write the report to `out` (.html), which needs no other file; returns `out`.

    arms: by name; "teacher", "teacher_few_steps", "dmd" and "dp_dmd" have their own labels and colours. comparison:
    what several training seeds under one budget add. provenance: texts or JSON needed to repeat the report, shown as
    they are. sources: the folders that it was made from.
    What an arm lacks (images, metrics, log) is left out. Raises ValueError when there is no arm.
    """
    if not arms:
        raise ValueError("a report needs at least one arm")
    page = _template().render(_content(title, arms, comparison, provenance or {}, sources or []))
    write_text(out, encodable(page))
    return Path(out)


def report_from_runs(
    runs: list[str | Path], out: str | Path, *, title: str | None = None, provenance: dict[str, Any] | None = None
) -> Path:
    """Write the report of run folders (see `read_runs`) or of the folder of one comparison; returns `out`.

    Raises ValueError when a run is missing, broken or empty, and OSError when `out` cannot be written.
    """
    require_writable(out, "the report")
    sources = [Path(run) for run in runs]
    if len(runs) == 1 and (sources[0] / COMPARISON_FILE).exists():
        comparison = read_comparison(runs[0])
        arms, title = comparison.arms, title or comparison.title
        provenance = comparison.provenance | (provenance or {})
    else:
        comparison, arms = None, read_runs(runs)
    options = {"comparison": comparison, "provenance": provenance, "sources": sources}
    return build_report(out, title=title or DEFAULT_TITLE, arms=arms, **options)


def verdict_sentence(runs: list[str | Path]) -> str:
    """The sentence at the top of the page of these folders."""
    is_comparison = len(runs) == 1 and (Path(runs[0]) / COMPARISON_FILE).exists()
    arms = read_comparison(runs[0]).arms if is_comparison else read_runs(runs)
    return verdict(arms, leads(arms)).sentence


def _content(
    title: str,
    arms: dict[str, ArmReport],
    comparison: Comparison | None,
    provenance: dict[str, Any],
    sources: list[Path],
) -> dict[str, Any]:
    """What the template shows, section by section."""
    sizes = further_sizes(arms)
    everyone = arms | {name: arm for size in sizes for name, arm in size.arms.items() if name not in arms}
    chosen, colours, script = leads(arms), arm_colours(everyone), _resource("page.js")
    galleries, tables, prompts = prompt_galleries(arms), make_tables(arms), prompt_data(arms, colours)
    first = [of_prompt for of_prompt in galleries if of_prompt.reason] or galleries[:6]
    return {
        "title": title,
        "policy": _policy(script),
        "style": _resource("page.css"),
        "script": script,
        "term": Terms().link,
        "arms": arms,
        "colours": colours,
        "comparison": comparison,
        "statuses": [
            text for arm in arms.values() if arm.status and (text := arm.status.sentence(arm.label, arm.folder))
        ],
        "verdict": verdict(arms, chosen),
        "numbers": large_numbers(arms, chosen),
        "picture": picture(arms, chosen),
        "design": comparison.sentences if comparison else of_which_size(arms, sizes),
        "trade_off": trade_off_plots(arms, comparison),
        "trained": [name for name, arm in arms.items() if arm.log],
        "films": films(arms),
        "curves": training_plots(arms, comparison),
        "chosen": first,
        "others": [of_prompt for of_prompt in galleries if of_prompt not in first],
        "sizes": sizes,
        "num_prompts": _num_prompts(arms),
        "prompts": prompts,
        "prompts_csv": download("prompts", prompt_table_rows(arms)) if prompts else None,
        "tables": tables,
        "answers": answers(arms),
        "notes": _notes(arms, comparison),
        "tables_csv": download("numbers", all_numbers(tables, arms, sizes)) if tables else None,
        "commands": commands(arms, sources),
        "facts": provenance_facts(arms),
        "provenance": provenance_files(arms, provenance),
    }


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dpdmd.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _resource(name: str) -> str:
    return files("dpdmd.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """The Content-Security-Policy: this one script, images embedded in the page, nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _notes(arms: dict[str, ArmReport], comparison: Comparison | None) -> list[str]:
    """What a reader must know before trusting the tables."""
    notes = []
    if comparison is not None:
        notes.append(comparison.intervals)
    elif any(arm.metrics.get("intervals") for arm in arms.values()):
        notes.append(ONE_SEED)
    if any(map(unreliable_frechet, arms.values())):
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


def _num_prompts(arms: dict[str, ArmReport]) -> int:
    return max((len({entry.prompt for entry in arm.images.images}) for arm in arms.values() if arm.images), default=0)
