"""Read the run folders of a report: images, metrics and training log of each arm."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from dpdmd.evaluate.manifest import MANIFEST_NAME, ImageEntry, Manifest, read_manifest
from dpdmd.evaluate.metrics_file import MetricsFile
from dpdmd.models.student_file import STUDENT_FILE, STUDENT_FOLDER, StudentFile
from dpdmd.store.files import read_json, read_text
from dpdmd.store.jsonl import read_rows
from dpdmd.store.names import did_you_mean, expanded
from dpdmd.store.state import checked

LABELS = {
    "teacher": "Teacher",
    "teacher_few_steps": "Teacher, few steps",
    "dmd": "DMD",
    "dmd_perceptual": "DMD + perceptual",
    "dp_dmd": "DP-DMD",
    "dmd_adversarial": "DMD + adversarial",
}
SETTINGS_FILES = ("recipe.toml", "provenance.json")
# A settings file is shown in full; anything longer is not a settings file.
LONGEST_SETTINGS = 20_000


@dataclass(frozen=True)
class ArmReport:
    """One arm of a report: the teacher or a student. Every part but the label may be missing.

    samples: its folder of images; images: the manifest of this folder; metrics: as `evaluate_folder` writes them, with
    whatever else was measured, such as seconds and peak_memory_bytes; log: one dict per student update, then one per
    validation; settings: {file name: text}.
    """

    label: str
    samples: Path | None = None
    images: Manifest | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def file_of(self, entry: ImageEntry) -> Path:
        """The file of one of its images."""
        assert self.samples is not None, "images are in the folder of samples"
        return self.samples / entry.file


def encodable(text: str) -> str:
    """Text that UTF-8 can encode: half of a surrogate pair, which JSON may contain, becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def per_prompt(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of "per_prompt" that name a prompt; [] where there are none."""
    rows = metrics.get("per_prompt")
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("prompt"), str)]


def shares_of(metrics: dict[str, Any]) -> dict[str, float]:
    """{prompt: share of the teacher's diversity that was kept}, for prompts on which the teacher has any."""
    shares = {}
    for row in per_prompt(metrics):
        share, own, reference = (row.get(key) for key in ("diversity_share", "diversity", "reference_diversity"))
        if is_number(share):
            shares[row["prompt"]] = share
        elif is_number(own) and is_number(reference) and reference > 0:
            shares[row["prompt"]] = own / reference
    return shares


def read_arm(folder: str | Path, label: str, *, metrics: dict[str, Any] | None = None) -> ArmReport:
    """Read a run folder: `samples/` (or images in the folder itself), `metrics.json`, `metrics.jsonl`, settings files.

    metrics: further metrics, which replace those of metrics.json.
    Raises ValueError for a missing folder and for files that are there but broken, student.json included: its student
    could not be sampled, which a page about it must not leave out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such run folder: {folder}")
    for place in (folder / STUDENT_FOLDER, folder):
        if (place / STUDENT_FILE).is_file():
            StudentFile.read(place)
    samples = next((path for path in (folder / "samples", folder) if (path / MANIFEST_NAME).exists()), None)
    found = _metrics(folder)
    texts = {name: folder / name for name in SETTINGS_FILES if (folder / name).is_file()}
    return ArmReport(
        label=label,
        samples=samples,
        images=read_manifest(samples) if samples else None,
        metrics=found | (metrics or {}),
        log=read_rows(folder / "metrics.jsonl") + read_rows(folder / "validation" / "scores.jsonl"),
        settings={name: read_text(path)[:LONGEST_SETTINGS] for name, path in texts.items()},
    )


def students_of(arms: dict[str, ArmReport]) -> dict[str, ArmReport]:
    """The arms without the teacher, at its own or at few steps."""
    return {name: arm for name, arm in arms.items() if name not in ("teacher", "teacher_few_steps")}


def read_runs(runs: list[str | Path]) -> dict[str, ArmReport]:
    """The arms of a report from run folders, in the order given.

    A folder of run folders, such as the demo's, gives one arm for each of them: first those in LABELS, then the others
    by name. If it has a metrics.json {"arms": {name: ...}}, this adds to their own.
    Raises ValueError when a folder is missing or has nothing to report.
    """
    arms: dict[str, ArmReport] = {}
    for run in map(Path, map(expanded, runs)):
        if not run.is_dir():
            raise ValueError(f"no such run folder: {run}{did_you_mean(run)}")
        extra = _metrics(run).get("arms")
        if _is_run(run) and not isinstance(extra, dict):
            _add(arms, run.resolve().name, read_arm(run, LABELS.get(run.resolve().name, run.resolve().name)))
            continue
        extra = extra if isinstance(extra, dict) else {}
        for name, metrics in extra.items():
            checked(metrics, MetricsFile, f"{run / 'metrics.json'}: arms.{name}")
        names = {path.name for path in run.iterdir() if path.is_dir() and _is_run(path)} | set(extra)
        if not names:
            raise ValueError(
                f"nothing to report in {run}: expected samples/{MANIFEST_NAME}, metrics.json or metrics.jsonl "
                "in it or in its sub-folders"
            )
        for name in sorted(names, key=lambda name: (_place(name), name)):
            label = LABELS.get(name, name)
            has_folder = (run / name).is_dir() and "/" not in name
            arm = read_arm(run / name, label, metrics=extra.get(name)) if has_folder else None
            _add(arms, name, arm or ArmReport(label, metrics=extra[name]))
    return arms


def _metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json holds; {} without the file. Raises ValueError naming what is wrong with it."""
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    content = read_json(path)
    checked(content, MetricsFile, path)
    return content


def _is_run(folder: Path) -> bool:
    names = ("metrics.json", "metrics.jsonl", MANIFEST_NAME, f"samples/{MANIFEST_NAME}")
    return any((folder / name).exists() for name in names)


def _place(name: str) -> int:
    return list(LABELS).index(name) if name in LABELS else len(LABELS)


def _add(arms: dict[str, ArmReport], name: str, arm: ArmReport) -> None:
    unique, number = name, 2
    while unique in arms:
        unique, number = f"{name} ({number})", number + 1
    arms[unique] = arm if unique == name else ArmReport(**{**vars(arm), "label": f"{arm.label} ({number - 1})"})
