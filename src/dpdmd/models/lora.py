"""LoRA adapters as stock diffusers and peft know them: configured, saved, published, merged."""

import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from torch import Tensor, nn

from dpdmd.method.roles import Role
from dpdmd.models.attached_lora import MAGNITUDE, Update, attach_lora, lora_format, network_without_weights, updates_of
from dpdmd.models.base import ModelAdapter
from dpdmd.models.lora_fit import require_applied
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.tensors import read_metadata, read_tensors, safetensors_errors

logger = logging.getLogger(__name__)

UP = "lora_B.weight"


@dataclass(frozen=True)
class LoraSettings:
    """Which roles train an adapter, and of which form: see the recipe's [lora] table."""

    roles: tuple[Role, ...] = ()
    rank: int = 64
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    use_rslora: bool = False
    use_dora: bool = False


def lora_configs(settings: LoraSettings, adapter: ModelAdapter, network: nn.Module) -> dict[Role, LoraConfig]:
    """peft's configuration for every role that trains an adapter.

    Raises ValueError for a target that is not a linear layer of the network.
    """
    targets = settings.targets or adapter.lora_targets
    linear = [f".{name}" for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    unknown = [target for target in targets if not any(name.endswith(f".{target}") for name in linear)]
    if settings.roles and unknown:
        endings = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"lora.targets: {', '.join(unknown)} is no linear layer of {adapter.source}; their names end in "
            f"{', '.join(endings)}"
        )
    return {
        role: LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,  # pyright: ignore[reportArgumentType]  # it takes floats
            target_modules=list(targets),
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
        )
        for role in settings.roles
    }


def save_lora(adapter: ModelAdapter, layers: dict[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """Write an adapter's `layers`, rank and alpha included, in the form that stock `load_lora_weights` takes.

    layers: as `get_peft_model_state_dict` returns them. Raises OSError when it cannot be written.
    """
    name = adapter.network_name
    # A set has another order in every process: a student that is written again would be another file.
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    options = {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": told}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lora-") as temporary, safetensors_errors(folder):
        lora_format(adapter).save_lora_weights(temporary, **options)
        os.replace(Path(temporary, LORA_FILE), folder / LORA_FILE)


def published_lora(adapter: ModelAdapter, folder: Path) -> dict[str, Tensor]:
    """The LoRA in `folder` as other tools take it: under names that they know, and with its scale in its weights.

    The file that `save_lora` writes says rank and alpha in its header, which only diffusers reads. Here lora_B is
    multiplied by alpha / rank (alpha / sqrt(rank) for rslora), so that a reader without the header is right as well.
    Raises ValueError for a DoRA: the length that it gives each row has no place in such a file.
    """
    path = folder / LORA_FILE
    layers, header = read_tensors(path), read_metadata(path).get(LORA_ADAPTER_METADATA_KEY)
    if any(MAGNITUDE in name for name in layers):
        raise ValueError(
            f"{path} is a DoRA, which tools other than diffusers would apply wrongly; export it without --lora, which "
            "merges it into the network"
        )
    prefix = f"{adapter.network_name}."
    if not all(name.startswith(prefix) for name in layers):
        return layers  # it was published before
    settings = {} if header is None else json.loads(header)

    def scale(rank: int) -> float:
        alpha = settings.get(f"{prefix}lora_alpha", rank)
        return alpha / (rank**0.5 if settings.get(f"{prefix}use_rslora") else rank)

    scaled = {name: t * scale(t.shape[1]) if name.endswith(UP) else t for name, t in layers.items()}
    return adapter.lora_names({name.removeprefix(prefix): t for name, t in scaled.items()})


def merge_lora(adapter: ModelAdapter, network: nn.Module, folder: Path) -> None:
    """Add the update in `folder`, as `save_lora` or `published_lora` gives it, to the network's own weights.

    Raises ValueError when nothing of it fits the network, or when it is damaged.
    """
    stock, path = cast("Any", network), folder / LORA_FILE  # a diffusers model
    attached = attach_lora(adapter, network, str(path), "student", str(path))
    require_applied(len(attached.layers), attached.given, path, adapter.source)
    stock.fuse_lora()
    stock.unload_lora()


def read_updates(adapter: ModelAdapter, source: str, what: str) -> dict[str, Update]:
    """{layer of the network: update} of a LoRA, a .safetensors file, a folder or a hub id; reads no network.

    what: the LoRA in messages. Its parts for other networks are left out, with a warning. Raises ValueError when it
    cannot be read or nothing of it fits, and for a DoRA.
    """
    network = network_without_weights(adapter)
    attached = attach_lora(adapter, network, source, "read", what)
    require_applied(len(attached.layers), attached.given, what, adapter.source)
    if attached.others:
        name = adapter.network_name
        logger.warning("%s: %d tensors are not for the %s and are left out", what, len(attached.others), name)
    if attached.is_dora:
        raise ValueError(f"{what} is a DoRA, whose update depends on the weights")
    return updates_of(attached, "read")
