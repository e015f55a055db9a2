"""Put a LoRA of any tool on a network as stock diffusers does, and read from it what it adds to each layer."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import StableDiffusion3Pipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dpdmd.models.base import ModelAdapter, empty_network
from dpdmd.models.lora_fit import fitting, require_whole
from dpdmd.models.stored import without_memory

MAGNITUDE = "lora_magnitude_vector"  # in the names of a DoRA


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to the weight of a layer: scale * up @ down; down (r, in, ...), up (out, r, ...)."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return len(self.down)


@dataclass(frozen=True)
class Attached:
    """A LoRA on a network.

    given: how many layers it has; layers: {name: peft's layer} of those that it has found in the network. missing: the
    first that it has not found, if its names are the network's. others: names of its tensors that are for other
    networks. is_dora: whether it also gives each row a length, so that its update depends on the weights.
    """

    given: int
    layers: dict[str, Any]
    missing: str | None
    others: tuple[str, ...]
    is_dora: bool


def lora_format(adapter: ModelAdapter) -> Any:
    """The stock pipeline that reads and writes a family's LoRA: its own, or, if that takes none, the plainest one."""
    return adapter.pipeline_class if takes_lora(adapter) else StableDiffusion3Pipeline


def takes_lora(adapter: ModelAdapter) -> bool:
    """Whether the family's stock pipeline can load a LoRA."""
    return hasattr(adapter.pipeline_class, "load_lora_weights")


def network_takes_lora(adapter: ModelAdapter) -> bool:
    """Whether stock diffusers can load a LoRA into the family's network, by its pipeline or by the network itself."""
    stock = getattr(diffusers, adapter.network_class.__name__, None)  # ours may have methods that the stock class lacks
    return takes_lora(adapter) or hasattr(stock, "load_lora_adapter")


def attach_lora(adapter: ModelAdapter, network: nn.Module, source: str, name: str, what: str) -> Attached:
    """Put the LoRA `source` on `network` as the adapter `name`.

    source: a .safetensors file, a folder with one, or a hub id. what: the LoRA in messages. Raises ValueError when it
    cannot be read, is damaged, has other shapes, or has nothing for the network.
    """
    stock, prefix = cast("Any", network), f"{adapter.network_name}."
    place = Path(source)
    folder, where = (str(place.parent), {"weight_name": place.name}) if place.is_file() else (source, {})
    layers, others, given = {}, (), 0
    with fitting(f"{what} does not fit {adapter.source}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are meant
        layers, *alphas, metadata = lora_format(adapter).lora_state_dict(
            folder, use_safetensors=True, return_lora_metadata=True, unet_config=stock.config, **where
        )
        others = tuple(sorted(key for key in layers if not key.startswith(prefix)))
        if len(others) == len(layers):
            raise ValueError(f"none of its {len(layers)} tensors is for the {adapter.network_name}")
        own = {key: tensor for key, tensor in layers.items() if key not in set(others)}
        given = require_whole(own, what)
        options = {"network_alphas": alphas[0] if alphas else None, "metadata": metadata}
        stock.load_lora_adapter(own, prefix=adapter.network_name, adapter_name=name, low_cpu_mem_usage=True, **options)
    found = adapted_layers(network, name)
    names = (key.removeprefix(prefix).partition(".lora_A.")[0] for key in layers if ".lora_A." in key)
    missing = next((layer for layer in names if layer not in found), None)
    return Attached(given, found, missing, others, any(MAGNITUDE in key for key in layers))


def adapted_layers(network: nn.Module, name: str) -> dict[str, Any]:
    """{name: peft's layer} of the layers on which the adapter `name` stands."""
    layers = {
        place: cast("Any", layer) for place, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    return {place: layer for place, layer in layers.items() if name in layer.lora_A}


def updates_of(attached: Attached, name: str) -> dict[str, Update]:
    """{layer: update} of the adapter `name`, in fp32."""
    return {
        place: Update(
            layer.lora_A[name].weight.detach().float(), layer.lora_B[name].weight.detach().float(), layer.scaling[name]
        )
        for place, layer in attached.layers.items()
    }


def network_without_weights(adapter: ModelAdapter) -> nn.Module:
    """The denoising network to read LoRAs on, of its configuration only.

    peft moves an adapter to the device of its layer, so that the meta device would lose it.
    """
    return without_memory(empty_network(adapter), torch.float32)
