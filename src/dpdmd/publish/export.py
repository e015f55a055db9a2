"""Hand a trained student to stock diffusers: a pipeline folder with a card whose snippet samples it."""

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
    """Write the student of a finished run, or one that a run has kept, as a pipeline folder that stock diffusers loads.

    A student that trained a LoRA has it merged into the pipeline's network; with `lora` the folder holds, instead of a
    pipeline, the LoRA as `load_lora_weights` takes it and the scheduler that goes with it.
    Beside them: README.md, the model card (`dpdmd.publish.card`), and student.json, so that dpdmd knows the grid.
    The parts that the student shares with its base (text encoders, autoencoder) are hard links to the base's files
    where the file system allows; `copy` makes them copies.
    metrics: what `dpdmd evaluate` wrote, for the card; default: the run's own metrics.json, if it has one.
    license: the student's; default: what the base's card says. repo_id: where the card says that the student is to be
    loaded from; default: `out`.
    Raises ValueError when `run` is no finished run, `out` exists, the metrics are none of ours, or `lora` is asked of a
    student that trained all its weights.
    """
    run, out = Path(run), Path(out)
    student = find_student(run)
    if student is None:
        raise ValueError(f"{run} is no finished run: it has no {STUDENT_FOLDER}/{STUDENT_FILE}")
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder")
    info = StudentFile.read(student)
    if lora and not (student / LORA_FILE).is_file():
        raise ValueError(f"{run} trained all weights of its student and has no LoRA; export it without --lora")
    if metrics is None and (run / "metrics.json").is_file():
        metrics = run / "metrics.json"
    scores = unscored_section(run, info.base) if metrics is None else metrics_section(read_metrics(metrics))
    sampler = load_sampler(str(run))
    adapter = sampler.adapter
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
    # students/best and students/step-000050 are in the run's folder.
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
    """The base's pipeline folder with another denoising network and another scheduler."""
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
    """How stock diffusers samples the export at `place`; `lora_scheduler`: the class exported beside a LoRA."""
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
    """A hard link to the file itself, also where `source` is a link into a hub cache; a copy across file systems."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _example_prompt(run: Path) -> str:
    """A prompt the card can show: the first that the run was judged on, else a plain one."""
    manifest = run / "samples" / "manifest.json"
    return read_json(manifest)["images"][0]["prompt"] if manifest.is_file() else "a red circle"
