"""Start a LoRA student from a LoRA: an earlier run's, or somebody's, in any form that stock diffusers reads."""

import re
from pathlib import Path

import torch
from torch import nn

from dpdmd.models.attached_lora import Update, adapted_layers
from dpdmd.models.base import ModelAdapter
from dpdmd.models.find import find_student
from dpdmd.models.lora import read_updates
from dpdmd.models.student_file import LORA_FILE


def require_lora(source: str) -> None:
    """Raises ValueError, before anything is loaded, for a local `source` that is no LoRA."""
    path = Path(source)
    if path.is_dir():
        student = find_student(path)
        if student is not None and not (student / LORA_FILE).is_file():
            raise ValueError(f"student.start: all weights of {source} were trained, and lora.roles names the student")
        if student is None and not any(path.glob("*.safetensors")):
            raise ValueError(f"student.start: {source} holds no LoRA: no .safetensors file")
    elif path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"student.start: {source}: a LoRA must be a .safetensors file; pickles are not read")


def read_lora(adapter: ModelAdapter, source: str) -> dict[str, Update]:
    """{layer of the network: update} of a LoRA; no network is read for it.

    source: a run or student of ours, a .safetensors file, a folder with one, or a hub id. Parts of the LoRA for other
    networks than the denoising one are left out, with a warning.
    Raises ValueError when it cannot be read or does not fit, and for a DoRA.
    """
    student = find_student(source)
    place = source if student is None else str(student / LORA_FILE)
    found = read_updates(adapter, place, f"student.start: the LoRA {source}")
    updates = {layer: _trimmed(update) for layer, update in found.items()}
    return {layer: update for layer, update in updates.items() if update.rank}


@torch.no_grad()
def start_from(network: nn.Module, updates: dict[str, Update], source: str) -> None:
    """Give the adapter "student" of a network the updates of a LoRA, so that it computes what that LoRA does.

    A smaller rank is filled up: the further rows of lora_A stay random, their columns of lora_B are zero. Layers
    that the LoRA leaves alone start at zero. Raises ValueError for a larger rank and for layers without an adapter.
    """
    layers = adapted_layers(network, "student")
    unknown = sorted(updates.keys() - layers.keys())
    if unknown:
        endings = sorted({re.sub(r".*\.([^.]*[^.\d][^.]*(\.\d+)?)$", r"\1", name) for name in updates})
        raise ValueError(
            f"student.start: {source} updates {len(unknown)} layers that have no adapter, the first is {unknown[0]}; "
            f"set lora.targets to {endings}"
        )
    rank = max((len(update.down) for update in updates.values()), default=0)
    have = min((len(layers[name].lora_A["student"].weight) for name in updates), default=0)
    if rank > have:
        raise ValueError(f"student.start: {source} has rank {rank}, more than lora.rank {have}; set lora.rank = {rank}")
    for name, update in updates.items():
        layer, size = layers[name], len(update.down)
        down, up = layer.lora_A["student"].weight, layer.lora_B["student"].weight
        down[:size] = update.down
        up.zero_()
        up[:, :size] = update.up * (update.scale / layer.scaling["student"])


def _trimmed(update: Update) -> Update:
    """Without the rows of `down` whose columns of `up` are zero, with which files fill what one rank leaves open."""
    counts = update.up.flatten(2).any(dim=(0, 2)) if update.up.ndim > 2 else update.up.any(dim=0)
    return Update(update.down[counts], update.up[:, counts], update.scale)
