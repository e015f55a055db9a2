"""Export a trained student as a folder that stock diffusers loads, with a model card whose snippet samples it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpdmd.method.grids import Grid
from dpdmd.models.base import ModelAdapter
from dpdmd.models.find import find_student
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import LORA_FILE, STUDENT_FILE, StudentFile
from dpdmd.publish.card import base_licence, metrics_section, model_card, read_metrics, unscored_section
from dpdmd.publish.pipeline import DTYPES, with_usual_modes, write_lora, write_pipeline
from dpdmd.publish.snippet import snippet
from dpdmd.store.files import atomic_folder, read_json, write_text
from dpdmd.store.names import did_you_mean, expanded


@dataclass(frozen=True)
class Exported:
    """A student on its way out.

    run: the folder that was named; student: the folder of its weights. arguments: those of the stock pipeline's call.
    """

    run: Path
    student: Path
    info: StudentFile
    adapter: ModelAdapter
    scheduler: Any
    arguments: dict[str, Any]
    is_lora: bool


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    lora: bool = False,
    dtype: str | None = None,
    one_file: bool = False,
    link: bool = False,
    metrics: str | Path | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the student of a run as a folder that stock diffusers loads; returns the folder.

    The folder is a complete pipeline, into whose network a LoRA is merged. It also contains README.md, the model card
    (`dpdmd.publish.card`), and student.json, from which dpdmd reads the grid.

    run: folder of a finished run, or of a student that a run has kept (students/best, students/step-N).
    out: folder to write; it must not exist.
    lora: instead of a pipeline, write the LoRA, under names and with a scale that diffusers and ComfyUI apply in full,
        and the student's scheduler. Nothing else is read.
    dtype: of the network's or the LoRA's weights, "fp32", "bf16" or "fp16"; default: the one that the base is stored
        in, and for a LoRA the one that it was trained in.
    one_file: write the network as one file, whatever its size; otherwise files of at most 10 GB.
    link: hard-link the files that the student shares with its base (text encoders, autoencoder) instead of copying
        them: no disk space, but what edits one edits the other.
    metrics: output of `dpdmd evaluate` for the card; default: the run's metrics.json, if it exists.
    license: licence of the student, as an identifier of the hub; default: the one in the base's model card.
    repo_id: hub id from which the card's snippet loads the student; default: the name of `out`.

    Raises ValueError if `run` is not a finished run, if `out` exists, if `metrics` was not written by `dpdmd evaluate`,
    or if `lora` is set for a student without a LoRA or with a DoRA, or together with `one_file` or `link`.
    """
    out = Path(out)
    if lora and (one_file or link):
        raise ValueError("--one-file and --link are about a whole pipeline; leave them out with --lora")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    student = _student(run, is_lora=lora)
    if out.exists():
        raise ValueError(f"{out} exists already; give a new folder")
    weights = None if dtype is None else DTYPES[dtype]
    if metrics is None and (student.run / "metrics.json").is_file():
        metrics = student.run / "metrics.json"
    card = _card(
        student,
        scores=unscored_section(student.run, student.info.base)
        if metrics is None
        else metrics_section(read_metrics(metrics)),
        place=repo_id or out.name,
        dtype=weights,
        license=license,
    )
    with atomic_folder(out) as folder:
        if lora:
            write_lora(student.adapter, student.student, student.scheduler, folder, dtype=weights)
        else:
            network = load_sampler(str(student.run)).network
            network = network if weights is None else network.to(weights)
            write_pipeline(student.adapter, network, student.scheduler, folder, link=link, one_file=one_file)
        write_text(folder / "README.md", card)
        student.info.write(folder)
        with_usual_modes(folder)
    return out


def _student(run: str | Path, *, is_lora: bool) -> Exported:
    """What a run has to export, from JSON files alone."""
    run = Path(expanded(run))
    if not run.is_dir():
        raise ValueError(f"no such run folder: {run}{did_you_mean(run)}")
    student = find_student(run)
    if student is None:
        raise ValueError(f"{run} has no student: no {STUDENT_FILE}, and no checkpoint of a run that holds one")
    if is_lora and not (student / LORA_FILE).is_file():
        raise ValueError(f"{run} has no LoRA: all weights of its student were trained; export it without --lora")
    info = StudentFile.read(student)
    info.require_its_weights(student)
    adapter, grid = load_adapter(info.base), Grid(info.grid)
    scheduler = adapter.student_scheduler(info.kind, grid, adapter.latent_shape(*(info.image_size or ())))
    arguments = adapter.call_arguments(scheduler, grid, info.embedded_guidance)
    arguments |= {key: value for key in ("height", "width") if (value := getattr(info, key)) is not None}
    return Exported(run, student, info, adapter, scheduler, arguments, is_lora)


def _card(student: Exported, *, scores: str, place: str, dtype: torch.dtype | None, license: str | None) -> str:
    adapter = student.adapter
    # `run` may be students/best or students/step-000050, inside the folder of the run.
    places = (student.run, *student.run.parents[1:3])
    recipe = next((path for folder in places if (path := folder / "recipe.toml").is_file()), None)
    return model_card(
        student.info,
        snippet=snippet(
            adapter,
            place,
            student.arguments,
            prompt=_example_prompt(student.run),
            dtype=dtype or _snippet_dtype(adapter, is_lora=student.is_lora),
            lora_scheduler=type(student.scheduler).__name__ if student.is_lora else None,
        ),
        hub_base=None if Path(adapter.source).is_dir() else adapter.source,
        licence={"license": license} if license else base_licence(adapter.source),
        scores=scores,
        recipe=recipe and recipe.read_text(encoding="utf-8"),
    )


def _snippet_dtype(adapter: ModelAdapter, *, is_lora: bool) -> torch.dtype:
    """The dtype that the base is stored in; for a LoRA of a hub id bf16, so that the base is not downloaded for it."""
    return torch.bfloat16 if is_lora and not Path(adapter.source).is_dir() else adapter.stored_dtype


def _example_prompt(run: Path) -> str:
    """A prompt for the card's snippet: the first evaluation prompt of the run, or "a red circle" if there is none."""
    manifest = run / "samples" / "manifest.json"
    return read_json(manifest)["images"][0]["prompt"] if manifest.is_file() else "a red circle"
