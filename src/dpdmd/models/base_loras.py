"""LoRAs that are part of a teacher: checked before any weights are read, merged when the network is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpdmd.models.attached_lora import Update, attach_lora, network_without_weights, takes_lora
from dpdmd.models.base import ModelAdapter
from dpdmd.models.lora import read_updates
from dpdmd.models.student_file import LORA_FILE, BaseLora
from dpdmd.store.errors import InputError
from dpdmd.store.names import local_or_hub_id


def require_loras(adapter: ModelAdapter, loras: Sequence[BaseLora]) -> None:
    """Raises ValueError for a LoRA that cannot be merged as a whole into the adapter's network; reads no network.

    That is one that does not exist or is damaged, that has layers which the network lacks or has in other shapes, and
    one for the text encoders as well.
    """
    if loras and not takes_lora(adapter):
        raise InputError(f"{adapter.source}: a {adapter.pipeline_class.__name__} of stock diffusers takes no LoRA")
    for lora in loras:
        _attach(adapter, network_without_weights(adapter), lora, "checked")


def merge_base_loras(adapter: ModelAdapter, network: nn.Module, loras: Sequence[BaseLora]) -> None:
    """Add LoRAs to a network's own weights, in their order and in its dtype, as stock `fuse_lora` does.

    Raises ValueError like `require_loras`.
    """
    from diffusers.utils import set_weights_and_activate_adapters

    if not loras:
        return
    stock, names = cast("Any", network), [f"base_{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _attach(adapter, network, lora, name)
    set_weights_and_activate_adapters(network, names, [lora.weight for lora in loras])
    stock.fuse_lora(adapter_names=names)
    stock.unload_lora()


def joined_lora(adapter: ModelAdapter, folder: Path, loras: Sequence[BaseLora]) -> dict[str, Tensor]:
    """The LoRA in `folder` and `loras` as one, under the names of `lora.published_lora`: their ranks side by side.

    W + sum_i s_i up_i @ down_i = W + [s_1 up_1, s_2 up_2, ...] @ [down_1; down_2; ...], exact up to rounding.
    Reads no network. Raises ValueError for a DoRA among them.
    """
    parts: dict[str, list[Update]] = {}
    for path, weight in [*((lora.path, lora.weight) for lora in loras), (str(folder / LORA_FILE), 1.0)]:
        for name, update in read_updates(adapter, local_or_hub_id(path), f"the LoRA {path}").items():
            parts.setdefault(name, []).append(Update(update.down, update.up, weight * update.scale))
    layers = {}
    for name, own in parts.items():
        layers[f"{name}.lora_A.weight"] = torch.cat([part.down for part in own])
        layers[f"{name}.lora_B.weight"] = torch.cat([part.scale * part.up for part in own], dim=1)
    named, alpha = adapter.lora_names(layers), max(len(t) for name, t in layers.items() if "lora_A" in name)
    for name in [name for name in named if name.endswith(".alpha")]:
        # diffusers finds no layer for an alpha that differs from the others in kohya's names, and scales it by theirs.
        up = f"{name.removesuffix('.alpha')}.lora_up.weight"
        named[up] = named[up] * (float(named[name]) / alpha)
        named[name] = torch.tensor(float(alpha))
    return named


def _attach(adapter: ModelAdapter, network: nn.Module, lora: BaseLora, name: str) -> None:
    """`attach_lora` of the whole file; raises ValueError for one of which a part would be left out."""
    what = f"the LoRA {lora.path}"
    source = local_or_hub_id(lora.path)
    if Path(source).is_file() and Path(source).suffix != ".safetensors":
        raise InputError(f"{what} must be a .safetensors file; pickles are not read")
    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise InputError(f"{what} is a folder without a .safetensors file")
    attached = attach_lora(adapter, network, source, name, what)
    if attached.others:
        parts = sorted({key.partition(".")[0] for key in attached.others})
        raise InputError(
            f"{what} has {len(attached.others)} tensors for {', '.join(parts)}, and only the {adapter.network_name} "
            f"is merged: merge it by stock diffusers (load_lora_weights, fuse_lora, save_pretrained) and give that "
            "folder as the model"
        )
    if len(attached.layers) < attached.given:
        first = "" if attached.missing is None else f", the first that it lacks is {attached.missing}"
        raise InputError(
            f"{what} is for another model: {adapter.source} has {len(attached.layers)} of its {attached.given} "
            f"layers{first}"
        )
