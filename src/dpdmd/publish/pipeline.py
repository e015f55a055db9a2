"""Write a student as a folder that stock diffusers loads: a whole pipeline, or a LoRA with its scheduler."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpdmd.models.base import ModelAdapter
from dpdmd.models.base_loras import joined_lora
from dpdmd.models.lora import published_lora
from dpdmd.models.parts import local_folder
from dpdmd.models.pipeline_files import parts_of
from dpdmd.models.student_file import LORA_FILE, BaseLora
from dpdmd.publish.comfyui_layout import COMFYUI_FILE, TABLES, in_comfyui_layout
from dpdmd.store.files import read_json, write_json
from dpdmd.store.tensors import write_tensors

# By the names of the recipe's `train.precision` and `model.dtype`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ONE_FILE = "20GB"  # a larger network is split all the same: few machines can read such a file


def write_pipeline(
    adapter: ModelAdapter, network: Any, scheduler: Any, out: Path, *, link: bool, one_file: bool
) -> None:
    """Write the base's pipeline to the folder `out`, with its denoising network and scheduler replaced.

    network: a diffusers model. link: hard-link the files of the other components instead of copying them. one_file: for
    ComfyUI, write a network of up to 20 GB as one file, which diffusers otherwise splits into files of at most 10 GB,
    and the whole network once more where ComfyUI reads another layout.
    """
    base = local_folder(adapter.source)
    index = read_json(base / "model_index.json")
    replaced = {adapter.network_name: network, "scheduler": scheduler}
    for name in parts_of(index):
        if name not in replaced:
            shutil.copytree(base / name, out / name, copy_function=_link if link else shutil.copyfile)
    network.save_pretrained(out / adapter.network_name, **({"max_shard_size": ONE_FILE} if one_file else {}))
    pipeline = adapter.pipeline_class.__name__
    if one_file and pipeline in TABLES:
        write_tensors(out / COMFYUI_FILE, in_comfyui_layout(pipeline, network.state_dict()))
    scheduler.save_pretrained(out / "scheduler")
    index |= {"scheduler": ["diffusers", type(scheduler).__name__], **adapter.exported_options}
    write_json(out / "model_index.json", index)


def write_lora(
    adapter: ModelAdapter,
    student: Path,
    scheduler: Any,
    out: Path,
    *,
    dtype: torch.dtype | None,
    loras: Sequence[BaseLora] = (),
) -> None:
    """Write the LoRA in the folder `student` to the folder `out`, with the scheduler; no network is loaded.

    dtype: of its weights; None: as it was trained. loras: those of its teacher, which become a part of it.
    """
    layers = published_lora(adapter, student)  # refuses a DoRA
    if loras:
        layers = joined_lora(adapter, student, loras)
    write_tensors(
        out / LORA_FILE, {name: t if dtype is None or not t.ndim else t.to(dtype) for name, t in layers.items()}
    )
    scheduler.save_pretrained(out / "scheduler")


def _link(source: str, target: str) -> None:
    """Hard-link a file, resolving symbolic links (as in a hub cache); copy it if it is on another file system."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
