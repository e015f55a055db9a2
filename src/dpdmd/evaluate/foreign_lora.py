"""Merge a LoRA of any tool into a stock pipeline, and say how much of it fits."""

from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from dpdmd.store.errors import reading
from dpdmd.store.messages import first_line

NOTHING_FITS = "not found in the base model"  # what peft says, with the names of all layers
DOWN = (".lora_A.", "lora_down.", "lora.down.")  # one such tensor per layer, whatever the tool


def merge_foreign_lora(pipeline: Any, lora: str, base: str) -> tuple[int, int]:
    """Merge a LoRA, a .safetensors file, a folder or a hub id, into a pipeline.

    base: name of the pipeline. Returns how many of the LoRA's layers were applied, and how many it has.
    Raises ValueError for a LoRA of which nothing fits, and for one that cannot be read or has other shapes.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{base}: a {type(pipeline).__name__} does not take a LoRA")
    place = Path(lora)
    source: dict[str, Any] = {"use_safetensors": True} | ({"weight_name": place.name} if place.is_file() else {})
    name = str(place.parent) if place.is_file() else lora
    given = applied = 0
    try:
        with reading(lora, "LoRA"):
            unet = getattr(pipeline, "unet", None)
            found = pipeline.lora_state_dict(name, unet_config=unet and unet.config, **source)
            given = sum(any(part in key for part in DOWN) for key in (found[0] if isinstance(found, tuple) else found))
            pipeline.load_lora_weights(name, **source)
            applied = _num_adapted(pipeline)
    except (KeyError, RuntimeError, ValueError) as error:
        if NOTHING_FITS not in str(error):
            raise ValueError(f"{lora} is not a LoRA for {base}: {first_line(error)}") from None
    if not applied:
        raise ValueError(f"{lora} is not a LoRA for {base}: none of its {given} layers is one of the model's")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return applied, given


def _num_adapted(pipeline: Any) -> int:
    """The number of layers of a pipeline that have a LoRA."""
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return sum(isinstance(module, BaseTunerLayer) for network in networks for module in network.modules())
