"""Start a LoRA student from a LoRA: an earlier run's, or somebody's, in any form that stock diffusers reads."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dpdmd.models.base import ModelAdapter
from dpdmd.models.find import find_student
from dpdmd.models.lora import lora_format
from dpdmd.models.lora_fit import fitting, num_adapted, require_applied, require_whole
from dpdmd.models.student_file import LORA_FILE

logger = logging.getLogger(__name__)

NAME = "start"


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to the weight of a layer: scale * up @ down; down (r, in), up (out, r)."""

    down: Tensor
    up: Tensor
    scale: float


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


def read_lora(adapter: ModelAdapter, network: nn.Module, source: str) -> dict[str, Update]:
    """{layer of the network: update} of a LoRA; the network is left as it was.

    source: a run or student of ours, a .safetensors file, a folder with one, or a hub id. Parts of the LoRA for other
    networks than the denoising one are left out, with a warning.
    Raises ValueError when it cannot be read or does not fit.
    """
    stock, name = cast("Any", network), adapter.network_name
    student = find_student(source)
    place = source if student is None else str(student / LORA_FILE)
    where = {"weight_name": Path(place).name} if Path(place).is_file() else {}
    folder = str(Path(place).parent) if where else place
    what = f"student.start: the LoRA {source}"
    given, others, layers = 0, [], {}
    with fitting(f"{what} does not fit {adapter.source}"):
        layers, *alphas, metadata = lora_format(adapter).lora_state_dict(
            folder, use_safetensors=True, return_lora_metadata=True, unet_config=stock.config, **where
        )
        others = [key for key in layers if not key.startswith(f"{name}.")]
        if len(others) == len(layers):
            raise ValueError(f"none of its {len(layers)} tensors is for the {name}")
        own = {key: tensor for key, tensor in layers.items() if key not in others}
        given = require_whole(own, what)
        options = {"network_alphas": alphas[0] if alphas else None, "metadata": metadata}
        stock.load_lora_adapter(own, prefix=name, adapter_name=NAME, **options)
    require_applied(num_adapted(network), given, what, adapter.source)
    if others:
        logger.warning(
            "student.start: %d of %d tensors are not for the %s and are left out", len(others), len(layers), name
        )
    updates = {place: _update(layer) for place, layer in _adapted(network, NAME).items()}
    is_dora = any("magnitude" in key for key in layers)
    stock.unload_lora()
    network.requires_grad_(False)
    if is_dora:
        raise ValueError(
            f"student.start: {source} is a DoRA, whose update depends on the weights; it cannot be a start"
        )
    return {place: update for place, update in updates.items() if len(update.down)}


@torch.no_grad()
def start_from(network: nn.Module, updates: dict[str, Update], source: str) -> None:
    """Give the adapter "student" of a network the updates of a LoRA, so that it computes what that LoRA does.

    A smaller rank is filled up: the further rows of lora_A stay random, their columns of lora_B are zero. Layers
    that the LoRA leaves alone start at zero. Raises ValueError for a larger rank and for layers without an adapter.
    """
    layers = _adapted(network, "student")
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


def _update(layer: Any) -> Update:
    """The update of a layer without the rows of lora_A whose columns of lora_B are zero: files have them as filling."""
    down, up = layer.lora_A[NAME].weight.detach().float(), layer.lora_B[NAME].weight.detach().float()
    counts = up.any(dim=0)
    return Update(down[counts], up[:, counts], layer.scaling[NAME])


def _adapted(network: nn.Module, adapter: str) -> dict[str, Any]:
    """{name: peft's layer} of the layers on which an adapter stands."""
    layers = {name: cast("Any", layer) for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}
    return {name: layer for name, layer in layers.items() if adapter in layer.lora_A}
