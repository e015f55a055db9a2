"""Export a trained student as a folder that stock diffusers loads, with a model card whose snippet samples it."""

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from dpdmd.models.base import ModelAdapter
from dpdmd.models.load import load_sampler
from dpdmd.models.parts import local_folder
from dpdmd.models.student_file import LORA_FILE, STUDENT_FILE, STUDENT_FOLDER, StudentFile, find_student
from dpdmd.publish.card import base_licence, metrics_section, model_card, read_metrics, unscored_section
from dpdmd.store.files import atomic_folder, read_json, write_json, write_text
from dpdmd.store.names import did_you_mean, expanded

SNIPPET = """\
import torch
from diffusers import {imports}

{load}
generator = torch.Generator().manual_seed(0)
image = pipe({prompt!r}, {arguments}, generator=generator).images[0]
"""


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    copy: bool = False,
    lora: bool = False,
    metrics: str | Path | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the student of a run as a folder that stock diffusers loads; returns the folder.

    The folder is a complete pipeline, into whose network a LoRA is merged. It also contains README.md, the model card
    (`dpdmd.publish.card`), and student.json, from which dpdmd reads the grid.

    run: folder of a finished run, or of a student that a run has kept (students/best, students/step-N).
    out: folder to write; it must not exist.
    copy: copy the components that the student shares with its base (text encoders, autoencoder). By default they are
        hard links to the base's files if the file system supports them.
    lora: instead of a pipeline, write the LoRA, as `load_lora_weights` expects it, and the student's scheduler.
    metrics: output of `dpdmd evaluate` for the card; default: the run's metrics.json, if it exists.
    license: licence of the student, as an identifier of the hub; default: the one in the base's model card.
    repo_id: hub id from which the card's snippet loads the student; default: `out`.

    Raises ValueError if `run` is not a finished run, if `out` exists, if `metrics` was not written by `dpdmd evaluate`,
    or if `lora` is set for a student without a LoRA.
    """
    run, out = Path(expanded(run)), Path(out)
    if not run.is_dir():
        raise ValueError(f"no such run folder: {run}{did_you_mean(run)}")
    student = find_student(run)
    if student is None:
        raise ValueError(f"{run} is not a finished run: it has no {STUDENT_FOLDER}/{STUDENT_FILE}")
    if out.exists():
        raise ValueError(f"{out} exists already; give a new folder")
    info = StudentFile.read(student)
    if lora and not (student / LORA_FILE).is_file():
        raise ValueError(f"{run} has no LoRA: all weights of its student were trained; export it without --lora")
    if metrics is None and (run / "metrics.json").is_file():
        metrics = run / "metrics.json"
    scores = unscored_section(run, info.base) if metrics is None else metrics_section(read_metrics(metrics))
    sampler = load_sampler(str(run))
    adapter = sampler.adapter
    assert sampler.grid is not None, "a student has a grid"
    arguments = adapter.call_arguments(sampler.grid, sampler.embedded_guidance)
    arguments |= {key: value for key in ("height", "width") if (value := getattr(info, key)) is not None}
    scheduler = adapter.student_scheduler(sampler.kind)
    snippet = _snippet(
        adapter,
        repo_id or str(out),
        arguments,
        prompt=_example_prompt(run),
        lora_scheduler=type(scheduler).__name__ if lora else None,
    )
    # `run` may be students/best or students/step-000050, inside the folder of the run.
    recipe = next((path for place in (run, *run.parents[1:3]) if (path := place / "recipe.toml").is_file()), None)
    card = model_card(
        info,
        snippet=snippet,
        hub_base=None if Path(adapter.source).is_dir() else adapter.source,
        licence={"license": license} if license else base_licence(adapter.source),
        scores=scores,
        recipe=recipe and recipe.read_text(encoding="utf-8"),
    )
    with atomic_folder(out) as folder:
        if lora:
            shutil.copyfile(student / LORA_FILE, folder / LORA_FILE)
            scheduler.save_pretrained(folder / "scheduler")
        else:
            write_pipeline(adapter, sampler.network, scheduler, folder, copy=copy)
        write_text(folder / "README.md", card)
        info.write(folder)
    return out


def write_pipeline(adapter: ModelAdapter, network: nn.Module, scheduler: Any, out: Path, *, copy: bool) -> None:
    """Write the base's pipeline to the folder `out`, with its denoising network and scheduler replaced.

    copy: copy the other components instead of hard-linking their files.
    """
    base = local_folder(adapter.source)
    index = read_json(base / "model_index.json")
    replaced = {adapter.network_name: network, "scheduler": scheduler}
    for name, entry in index.items():
        is_part = not name.startswith("_") and isinstance(entry, list) and entry[0] is not None
        if is_part and name not in replaced:
            take = shutil.copyfile if copy else _link
            shutil.copytree(base / name, out / name, copy_function=take)
    for name, part in replaced.items():
        part.save_pretrained(out / name)
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    write_json(out / "model_index.json", index)


def _snippet(
    adapter: ModelAdapter, place: str, arguments: dict[str, Any], *, prompt: str, lora_scheduler: str | None
) -> str:
    """The Python code with which stock diffusers samples the export at `place`.

    lora_scheduler: class name of the scheduler exported with a LoRA; None for a complete pipeline.
    """
    pipeline = adapter.pipeline_class.__name__
    if lora_scheduler is None:
        imports, load = pipeline, [f"pipe = {pipeline}.from_pretrained({place!r})"]
    else:
        imports = f"{lora_scheduler}, {pipeline}"
        load = [
            f"pipe = {pipeline}.from_pretrained({adapter.source!r})",
            f"pipe.load_lora_weights({place!r})",
            f'pipe.scheduler = {lora_scheduler}.from_pretrained({place!r}, subfolder="scheduler")',
        ]
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return SNIPPET.format(imports=imports, load="\n".join(load), prompt=prompt, arguments=call)


def _link(source: str, target: str) -> None:
    """Hard-link a file, resolving symbolic links (as in a hub cache); copy it if it is on another file system."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _example_prompt(run: Path) -> str:
    """A prompt for the card's snippet: the first evaluation prompt of the run, or "a red circle" if there is none."""
    manifest = run / "samples" / "manifest.json"
    return read_json(manifest)["images"][0]["prompt"] if manifest.is_file() else "a red circle"
