"""Export a trained student as a folder that stock diffusers loads, with a model card whose snippet samples it."""

import logging
import os
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import torch

from dpdmd.evaluate.manifest import ManifestFile
from dpdmd.method.grids import Grid
from dpdmd.models.attached_lora import network_takes_lora
from dpdmd.models.base import ModelAdapter
from dpdmd.models.find import find_student
from dpdmd.models.load import grids_of, load_adapter, load_sampler
from dpdmd.models.parts import cached_folder
from dpdmd.models.student_file import LORA_FILE, STUDENT_FILE, StudentFile
from dpdmd.publish.card import CardParts, base_licence, code, lora_licence, model_card, read_metrics, require_licence
from dpdmd.publish.comfyui import WORKFLOW_FILE, Workflow, settings, why_none, workflow
from dpdmd.publish.pictures import PICTURE_FILE, write_picture
from dpdmd.publish.pipeline import DTYPES, write_lora, write_pipeline
from dpdmd.publish.snippet import public_name, snippet
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import atomic_folder, read_text, write_json, write_text
from dpdmd.store.names import did_you_mean, expanded
from dpdmd.store.state import read_state

logger = logging.getLogger(__name__)

STUDENTS_FOLDER = "students"  # of a run: the students that it has kept


@dataclass(frozen=True)
class Exported:
    """A student on its way out.

    run: the folder that was named; student: the folder of its weights. arguments: those of the stock pipeline's call.
    size: height and width in pixels. is_alone: the LoRA leaves without the LoRAs of its teacher.
    """

    run: Path
    student: Path
    info: StudentFile
    adapter: ModelAdapter
    scheduler: Any
    arguments: dict[str, Any]
    size: tuple[int, int]
    is_lora: bool
    is_alone: bool = False

    @property
    def places(self) -> tuple[Path, ...]:
        """Where files of the run may lie: `run` may be students/best or students/step-000050, inside its folder."""
        is_kept = STUDENTS_FOLDER in [parent.name for parent in self.run.parents[:2]]
        return (self.run, *self.run.parents[1:3]) if is_kept else (self.run,)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    lora: bool = False,
    alone: bool = False,
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
        and the student's scheduler. Nothing else is read. LoRAs of the teacher (model.loras) become a part of it.
    alone: with `lora`, leave out the teacher's LoRAs; the card says how to load them beside it.
    dtype: of the network's or the LoRA's weights, "fp32", "bf16" or "fp16"; default: the one that the base is stored
        in. A LoRA whose base is a hub id that is not on this machine keeps the dtype that it was trained in.
    one_file: write a network of up to 20 GB as one file, a larger one in files of that size; otherwise of 10 GB. Where
        ComfyUI reads another layout than diffusers', also write comfyui_student.safetensors.
    link: hard-link the files that the student shares with its base (text encoders, autoencoder) instead of copying
        them: no disk space, but what edits one edits the other.
    metrics: output of `dpdmd evaluate` for the card; default: the run's metrics.json, if it exists.
    license: licence of the student, as an identifier of the hub; default: the one in the base's model card.
    repo_id: hub id from which the card's snippet loads the student; default: the name of `out`.

    Raises ValueError if `run` is not a finished run, if `out` exists, if `metrics` was not written by `dpdmd evaluate`,
    or if `lora` is set for a student without a LoRA or with a DoRA, or together with `one_file` or `link`.
    """
    out = Path(out)
    _require_options(lora=lora, alone=alone, dtype=dtype, one_file=one_file, link=link, license=license)
    student = _student(run, is_lora=lora, is_alone=alone)
    if os.path.lexists(out):
        raise ValueError(f"{out} exists already; give a new folder")
    weights = _dtype(student, dtype)
    if metrics is None and (student.run / "metrics.json").is_file():
        metrics = student.run / "metrics.json"
    scores = None if metrics is None else read_metrics(metrics)
    flow = _workflow(student, one_file=one_file)
    with atomic_folder(out) as folder:
        if lora:
            loras = () if alone else student.info.loras_to_merge(student.student)
            write_lora(student.adapter, student.student, student.scheduler, folder, dtype=weights, loras=loras)
        else:
            network = load_sampler(str(student.run), weights).network
            write_pipeline(student.adapter, network, student.scheduler, folder, link=link, one_file=one_file)
        if flow is not None:
            write_json(folder / WORKFLOW_FILE, flow)
        parts = _card_parts(student, repo_id or out.name, weights, flow, license)
        picture = write_picture(student.run, student.places, student.info.updates, folder / PICTURE_FILE)
        write_text(folder / "README.md", model_card(student.info, replace(parts, metrics=scores, picture=picture)))
        student.info.model_copy(update={"contains_loras": not alone and bool(student.info.base_loras)}).write(folder)
    return out


def _require_options(
    *, lora: bool, alone: bool, dtype: str | None, one_file: bool, link: bool, license: str | None
) -> None:
    """Raises ValueError for options of `export_run` that exclude each other or do not exist."""
    if lora and (one_file or link):
        raise ValueError("--one-file and --link are about a whole pipeline; leave them out with --lora")
    if alone and not lora:
        raise ValueError("--alone is about a LoRA: give --lora as well; a whole pipeline contains its teacher's LoRAs")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if license is not None:
        require_licence(license)


def _card_parts(
    student: Exported, place: str, weights: torch.dtype | None, flow: Workflow | None, license: str | None
) -> CardParts:
    """The model card without scores and picture. place: folder or hub id from which its snippet loads the student."""
    source = student.adapter.source
    return CardParts(
        name=place.rpartition("/")[2],
        base=public_name(student.info.base),
        hub_base=None if Path(source).is_dir() else source,
        snippet=_snippet(student, place, weights),
        licence={"license": license} if license else base_licence(source),
        facts=_facts(student),
        comfyui=None if flow is None else settings(flow),
        why_no_comfyui=why_none(student.adapter.pipeline_class.__name__),
        recipe=_recipe(student),
        lora_licences={public_name(own.path): lora_licence(own.path) for own in student.info.base_loras},
    )


def _student(run: str | Path, *, is_lora: bool, is_alone: bool) -> Exported:
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
    if is_alone and not info.loras_to_merge(student):
        raise ValueError(f"{run}: there is no LoRA of its teacher to leave out (--alone)")
    adapter, grid = load_adapter(info.base), Grid(info.grid)
    if is_lora and not network_takes_lora(adapter):
        raise ValueError(
            f"{run}: a {adapter.pipeline_class.__name__} of stock diffusers cannot load a LoRA; export it without "
            "--lora, which merges it into the network"
        )
    shape = adapter.latent_shape(*(info.image_size or ()))
    grids = grids_of(adapter, info.sizes) or {shape: grid}
    scheduler = adapter.sized_scheduler(info.kind, grids)
    arguments = adapter.call_arguments(scheduler, grid, info.embedded_guidance)
    arguments |= {key: value for key in ("height", "width") if (value := getattr(info, key)) is not None}
    size = adapter.vae_factor * shape[1], adapter.vae_factor * shape[2]
    return Exported(run, student, info, adapter, scheduler, arguments, size, is_lora, is_alone)


def _dtype(student: Exported, name: str | None) -> torch.dtype | None:
    """The dtype of the weights that leave; None for a LoRA whose base would have to be downloaded to know it."""
    if name is not None:
        return DTYPES[name]
    if student.is_lora and cached_folder(student.adapter.source) is None:
        logger.info(
            "note: the LoRA stays in the dtype that it was trained in, since its base %s is not on this machine; "
            "--dtype names another",
            student.adapter.source,
        )
        return None
    return student.adapter.stored_dtype


def _workflow(student: Exported, *, one_file: bool) -> Workflow | None:
    info, adapter = student.info, student.adapter
    return workflow(
        adapter.pipeline_class.__name__,
        Grid(info.grid),
        adapter.path,
        is_uniform="num_inference_steps" in student.arguments,
        kind=info.kind,
        size=student.size,
        prompt=_example_prompt(student.run),
        embedded_guidance=info.embedded_guidance,
        is_lora=student.is_lora,
        one_file=one_file,
        v_prediction=adapter.prediction_space == "v",
        zero_snr=getattr(adapter, "scheduler_config", {}).get("rescale_betas_zero_snr", False),
        loras=[(public_name(lora.path), lora.weight) for lora in info.base_loras] if student.is_alone else (),
    )


def _snippet(student: Exported, place: str, dtype: torch.dtype | None) -> str:
    info, steps = student.info, student.info.num_inference_steps
    return snippet(
        student.adapter,
        place,
        student.arguments,
        prompt=_example_prompt(student.run),
        dtype=dtype or torch.bfloat16,  # what large models are drawn in
        lora_scheduler=type(student.scheduler).__name__ if student.is_lora else None,
        loras=info.base_loras if student.is_alone else (),
        renewal=student.adapter.renewal_code(steps) if info.kind == "renoise_last" and steps > 2 else None,
    )


def _facts(student: Exported) -> list[str]:
    """Size and teacher, with the values that defaults stood for."""
    adapter, (height, width) = student.adapter, student.size
    config = getattr(adapter, "scheduler_config", {})
    sizes = [f"{size.height} x {size.width}" for size in student.info.sizes] or [f"{height} x {width}"]
    fixed = ", where the base would shift it with the size" if config.get("use_dynamic_shifting") else ""
    others = f"Other sizes are drawn on the same grid{fixed}"
    if len({size.grid for size in student.info.sizes}) > 1:
        others = "The scheduler shifts the grid with the size, as the base's does; the one above is of the first"
    facts = [f"Trained at {', '.join(sizes)} pixels (height x width). {others}"]
    where = "to be loaded beside it" if student.is_alone else "which is in its weights"
    facts += [
        f"The teacher has the LoRA {code(public_name(lora.path))} with weight {lora.weight:g}, {where}"
        for lora in student.info.base_loras
    ]
    path = _recipe_file(student)
    if path is not None:
        try:
            recipe = load_recipe(path)
        except ValueError:  # of another version
            return facts
        model = recipe.model
        scale = adapter.guidance_scale if model.guidance_scale is None else model.guidance_scale
        steps = model.num_inference_steps or adapter.num_inference_steps
        facts.append(f"Teacher: {steps} steps, classifier-free guidance {scale:g} (1 = off)")
        if model.negative_prompt:
            facts.append(f"Negative prompt, which is in the weights: {escape(' '.join(model.negative_prompt.split()))}")
        if recipe.data.negative_column:
            facts.append("Training prompts had negative prompts of their own, which are in the weights")
    if student.info.embedded_guidance is not None:
        facts.append(f"Guidance input of the network: {student.info.embedded_guidance:g}")
    return facts


def _recipe_file(student: Exported) -> Path | None:
    return next((path for folder in student.places if (path := folder / "recipe.toml").is_file()), None)


def _recipe(student: Exported) -> str | None:
    path = _recipe_file(student)
    return path and read_text(path)


def _example_prompt(run: Path) -> str:
    """A prompt for the card's snippet: the first evaluation prompt of the run, or "a red circle" if there is none."""
    manifest = run / "samples" / "manifest.json"
    images = read_state(manifest, ManifestFile).images if manifest.is_file() else []
    return images[0].prompt if images else "a red circle"
