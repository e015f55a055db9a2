"""The Python code with which stock diffusers samples an export, on a GPU where there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpdmd.models.attached_lora import takes_lora
from dpdmd.models.base import RENEW_NOISE, ModelAdapter
from dpdmd.models.student_file import LORA_FILE, BaseLora

SNIPPET = """\
import torch
from diffusers import {imports}

device = "cuda" if torch.cuda.is_available() else "cpu"
{load}
{renewal}generator = torch.Generator().manual_seed(0)  # on the CPU, so that every device draws the same noise
image = pipe(prompt={prompt!r}, {arguments}, generator=generator{callback}).images[0]
"""


def snippet(
    adapter: ModelAdapter,
    place: str,
    arguments: dict[str, Any],
    *,
    prompt: str,
    dtype: torch.dtype,
    lora_scheduler: str | None,
    loras: Sequence[BaseLora] = (),
    renewal: str | None = None,
) -> str:
    """The code that loads the export at `place` and calls it.

    place: folder or hub id. arguments: of the call. lora_scheduler: class name of the scheduler exported with a LoRA;
    None for a complete pipeline. loras: of the teacher, which that LoRA needs beside it. renewal: the adapter's
    `renewal_code`, for a student that needs it.
    """
    pipeline = adapter.pipeline_class.__name__
    to = f"dtype={dtype}).to(device)"
    if lora_scheduler is None:
        imports, load = pipeline, [f"pipe = {pipeline}.from_pretrained({place!r}, {to}"]
    else:
        imports = f"{lora_scheduler}, {pipeline}"
        load = [
            f"pipe = {pipeline}.from_pretrained({public_name(adapter.source)!r}, {to}",
            *_load_loras(adapter, place, loras),
            f'pipe.scheduler = {lora_scheduler}.from_pretrained({place!r}, subfolder="scheduler")',
        ]
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return SNIPPET.format(
        imports=imports,
        load="\n".join(load),
        prompt=prompt,
        arguments=call,
        renewal="" if renewal is None else f"\n\n{renewal}\n\n",
        callback="" if renewal is None else f", {adapter.callback}={RENEW_NOISE}",
    )


def _load_loras(adapter: ModelAdapter, place: str, loras: Sequence[BaseLora]) -> list[str]:
    """The lines that load the LoRA at `place`, and those of the teacher beside it."""
    if not takes_lora(adapter):  # and a teacher has none
        network = adapter.network_name
        return [f"pipe.{network}.load_lora_adapter({place!r}, prefix={network!r}, weight_name={LORA_FILE!r})"]
    if not loras:
        return [f"pipe.load_lora_weights({place!r})"]
    names = ["student", *(f"teacher_{i}" for i in range(1, len(loras) + 1))]
    places = [place, *(public_name(lora.path) for lora in loras)]
    weights = [1.0, *(lora.weight for lora in loras)]
    lines = [f"pipe.load_lora_weights({p!r}, adapter_name={n!r})" for p, n in zip(places, names, strict=True)]
    return [*lines, f"pipe.set_adapters({names!r}, {weights!r})"]


def public_name(source: str) -> str:
    """A name of a model that says nothing of this machine: that of a folder or file alone, or the hub id."""
    return Path(source).name if Path(source).is_absolute() or Path(source).is_dir() else source
