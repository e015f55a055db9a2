"""Read the run folders of a report: images, metrics and training log of each arm."""

import json
import math
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from dpdmd.evaluate.manifest import MANIFEST_NAME, ImageEntry, Manifest, read_manifest
from dpdmd.evaluate.metrics import REFERENCE
from dpdmd.evaluate.metrics_file import MetricsFile
from dpdmd.evaluate.speed import speed_metrics
from dpdmd.models.student_file import STUDENT_FILE, STUDENT_FOLDER, StudentFile
from dpdmd.report.status import Status, status_of
from dpdmd.store.files import read_json, read_text
from dpdmd.store.jsonl import read_rows
from dpdmd.store.names import did_you_mean, expanded
from dpdmd.store.pictures import picture_size, size_name
from dpdmd.store.state import checked

LABELS = {
    "teacher": "Teacher",
    "teacher_few_steps": "Teacher, few steps",
    "student": "Student",
    "dmd": "DMD",
    "dmd_perceptual": "DMD + perceptual",
    "dp_dmd": "DP-DMD",
    "dmd_adversarial": "DMD + adversarial",
}
SIZE = re.compile(r"[0-9]+x[0-9]+")  # HEIGHTxWIDTH
SETTINGS_FILES = ("recipe.toml", "provenance.json")
# Of a run: where `dpdmd evaluate RUN` draws images of its students and of its teacher.
EVALUATION, TEACHER = "evaluation", "teacher"
LONGEST_NAME = 28
# A settings file is shown in full; anything longer is not a settings file.
LONGEST_SETTINGS = 20_000


@dataclass(frozen=True)
class ArmReport:
    """One arm of a report: the teacher or a student. Every part but the label may be missing.

    folder: of the run; samples: its folder of images; images: the manifest of this folder; metrics: as
    `evaluate_folder` writes them, with whatever else was measured, such as seconds and peak_memory_bytes; log: one dict
    per student update, then one per validation; pictures: {student updates: picture of a validation}; settings:
    {file name: text}; status: how far a training came; sizes: the same of each further size of images, by its name.
    """

    label: str
    folder: Path | None = None
    samples: Path | None = None
    images: Manifest | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[int, Path] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    status: Status | None = None
    sizes: dict[str, "ArmReport"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its label, cut where it would not fit a sentence."""
        return self.label if len(self.label) <= LONGEST_NAME else f"{self.label[: LONGEST_NAME - 1]}…"

    @property
    def objective(self) -> str:
        """The name of the objective that it was trained with; "" if it is not known."""
        found = recipe_of(self).get("objective")
        return str(found.get("name", "")) if isinstance(found, dict) else ""

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """What provenance.json says of each session of its training; [] where it says nothing."""
        try:
            found = json.loads(self.settings.get("provenance.json", "") or "{}")
        except (ValueError, RecursionError):
            return []
        listed = found.get("sessions") if isinstance(found, dict) else None
        return [session for session in listed if isinstance(session, dict)] if isinstance(listed, list) else []

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
    own, speed = _metrics(folder), speed_metrics(folder)
    found = {**speed, **own, **(metrics or {})}
    intervals = {k: v for part in (speed, own, metrics or {}) for k, v in _intervals(part)}
    if intervals:
        found["intervals"] = intervals
    texts = {name: folder / name for name in SETTINGS_FILES if (folder / name).is_file()}
    log = read_rows(folder / "metrics.jsonl")
    samples, images = _samples_in([folder / "samples", folder, *_drawn(folder / EVALUATION)], found)
    arm = ArmReport(
        label=label,
        folder=folder,
        samples=samples,
        images=images,
        metrics=found,
        log=log + read_rows(folder / "validation" / "scores.jsonl"),
        pictures=_pictures(folder / "validation"),
        settings={name: read_text(path)[:LONGEST_SETTINGS] for name, path in texts.items()},
        status=status_of(folder, log),
    )
    return replace(arm, sizes=_further_sizes(arm))


def _further_sizes(arm: ArmReport) -> dict[str, ArmReport]:
    """An arm at each further size that it was scored at, or that its validation drew."""
    assert arm.folder is not None, "a run is in a folder"
    scored = arm.metrics.get("further_sizes")
    scored = {size: own for size, own in scored.items() if SIZE.fullmatch(size)} if isinstance(scored, dict) else {}
    seen = {
        path.name for path in (arm.folder / "validation").glob("*x*") if path.is_dir() and SIZE.fullmatch(path.name)
    }
    sizes = {}
    for size in [*scored, *sorted(seen - set(scored))]:
        metrics = scored.get(size, {}) | {"image_size": size}
        places = [*_drawn(arm.folder / EVALUATION / size), *([arm.samples] if arm.samples else [])]
        samples, images = _samples_in(places, metrics) if size in scored else (None, None)
        pictures = _pictures(arm.folder / "validation" / size)
        sizes[size] = replace(arm, samples=samples, images=images, metrics=metrics, pictures=pictures, status=None)
    return sizes


def at_size(arms: dict[str, ArmReport], size: str) -> dict[str, ArmReport]:
    """The arms at one of their further sizes, those that were scored at it, with their teacher."""
    found = {name: arm.sizes[size] for name, arm in arms.items() if size in arm.sizes}
    scored = {name: arm for name, arm in found.items() if set(arm.metrics) - {"image_size"}}
    return _with_teacher(scored) if scored else {}


def recipe_of(arm: ArmReport) -> dict[str, Any]:
    """The recipe that a run was trained with; {} where there is none that can be read."""
    try:
        return tomllib.loads(arm.settings.get("recipe.toml", ""))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}  # it is still shown as text


def _intervals(metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    found = metrics.get("intervals")
    return list(found.items()) if isinstance(found, dict) else []


def _samples_in(places: list[Path], metrics: dict[str, Any]) -> tuple[Path | None, Manifest | None]:
    """The images of a run in the first of these folders that has all prompts of which there are metrics, else any.

    Where the metrics name a size, those of this size alone.
    """
    scored, size = {row["prompt"] for row in per_prompt(metrics)}, metrics.get("image_size")
    places = [path for path in places if (path / MANIFEST_NAME).exists()]
    found = [(path, _of_size(path, size)) for path in places[: None if scored else 1]]
    found = [(path, images) for path, images in found if images.images]
    whole = [(path, images) for path, images in found if scored <= {entry.prompt for entry in images.images}]
    return next(iter([*whole, *found]), (None, None))


def _of_size(folder: Path, size: Any) -> Manifest:
    """The images of a folder, those of one size if there is one."""
    manifest = read_manifest(folder)
    if size is None:
        return manifest
    images = [entry for entry in manifest.images if size_name(picture_size(folder / entry.file)) == size]
    return replace(manifest, images=images)


def _drawn(folder: Path) -> list[Path]:
    """Where `dpdmd evaluate RUN` drew images of a student, the last first."""
    drawn = [path.parent for path in folder.glob(f"step-*/{MANIFEST_NAME}")]
    return sorted(drawn, key=lambda path: ((path / MANIFEST_NAME).stat().st_mtime_ns, path.name), reverse=True)


def _pictures(folder: Path) -> dict[int, Path]:
    """{student updates: file} of the pictures that validation drew, early ones first."""
    found = {path.stem.removeprefix("step-"): path for path in sorted(folder.glob("step-*.png"))}
    return {int(step): path for step, path in found.items() if step.isascii() and step.isdigit()}


def _teacher_of(arm: ArmReport) -> ArmReport | None:
    """The teacher as `dpdmd evaluate RUN` drew and scored it; None where it did neither."""
    size, evaluation = arm.metrics.get("image_size"), arm.folder / EVALUATION if arm.folder else None
    places = [evaluation / place / TEACHER for place in (size or "", "")] if evaluation else []
    samples, images = _samples_in(places, {"image_size": size})
    metrics = {key.removeprefix(REFERENCE): value for key, value in arm.metrics.items() if key.startswith(REFERENCE)}
    metrics = {key: value for key, value in metrics.items() if is_number(value)}
    rows = [
        {"prompt": row["prompt"], **_of_reference(row)} for row in per_prompt(arm.metrics) if len(_of_reference(row))
    ]
    if images is None and not rows:
        return None
    if rows and all("diversity" in row for row in rows):
        metrics.setdefault("diversity", sum(row["diversity"] for row in rows) / len(rows))
    return ArmReport(LABELS[TEACHER], samples=samples if images else None, images=images,
                     metrics=metrics | ({"per_prompt": rows} if rows else {}))  # fmt: skip


def _of_reference(row: dict[str, Any]) -> dict[str, float]:
    return {k.removeprefix(REFERENCE): v for k, v in row.items() if k.startswith(REFERENCE) and is_number(v)}


def students_of(arms: dict[str, ArmReport]) -> dict[str, ArmReport]:
    """The arms without the teacher, at its own or at few steps."""
    return {name: arm for name, arm in arms.items() if name not in ("teacher", "teacher_few_steps")}


def read_runs(runs: list[str | Path]) -> dict[str, ArmReport]:
    """The arms of a report from run folders, in the order given.

    A folder of run folders, such as the demo's, gives one arm for each of them: first those in LABELS, then the others
    by name. If it has a metrics.json {"arms": {name: ...}}, this adds to their own. Runs that `dpdmd evaluate` has
    scored come with their teacher, if it is the same for all.
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
    return _with_teacher(arms)


def _with_teacher(arms: dict[str, ArmReport]) -> dict[str, ArmReport]:
    """The arms after the teacher that they share, if none of them is the teacher and the runs know it.

    A teacher gets its time per image, which was measured with a student's.
    """
    if TEACHER in arms:
        key = "seconds_per_image"
        students = reversed(arms.values())  # of those in LABELS DP-DMD is the last one
        found = next((m for arm in students if is_number(m := arm.metrics.get(REFERENCE + key))), None)
        own = arms[TEACHER]
        known = {} if found is None else {key: found}
        return {**arms, TEACHER: replace(own, metrics=known | own.metrics)}
    teachers = {_of(arm, "model", "teacher") for arm in arms.values()}
    if len(teachers) != 1:
        return arms
    found = next(filter(None, map(_teacher_of, arms.values())), None)
    return arms if found is None else {TEACHER: found} | arms


def _of(arm: ArmReport, section: str, key: str) -> Any:
    found = recipe_of(arm).get(section)
    return found.get(key) if isinstance(found, dict) else None


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
