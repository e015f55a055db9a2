"""Merge a LoRA of any tool into a stock pipeline, and say how much of it fits."""

from pathlib import Path
from typing import Any

from torch import nn

from dpdmd.models.lora_fit import fitting, num_adapted, require_applied, require_whole


def merge_foreign_lora(pipeline: Any, lora: str, base: str, weight: float = 1.0) -> tuple[int, int]:
    """Merge a LoRA, a .safetensors file, a folder or a hub id, into a pipeline.

    base: name of the pipeline. weight: factor of what it adds. Returns how many of the LoRA's layers were applied, and
    how many it has.
    Raises ValueError for a LoRA of which nothing fits, and for one that cannot be read or has other shapes.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{base}: a {type(pipeline).__name__} does not take a LoRA")
    place = Path(lora)
    source: dict[str, Any] = {"use_safetensors": True} | ({"weight_name": place.name} if place.is_file() else {})
    name = str(place.parent) if place.is_file() else lora
    given = 0
    with fitting(f"{lora} is not a LoRA for {base}"):
        unet = getattr(pipeline, "unet", None)
        found = pipeline.lora_state_dict(name, unet_config=unet and unet.config, **source)
        given = require_whole(found[0] if isinstance(found, tuple) else found, lora)
        pipeline.load_lora_weights(name, **source)
    applied = num_adapted(*(part for part in pipeline.components.values() if isinstance(part, nn.Module)))
    require_applied(applied, given, lora, base)
    pipeline.fuse_lora(lora_scale=weight)
    pipeline.unload_lora_weights()
    return applied, given
