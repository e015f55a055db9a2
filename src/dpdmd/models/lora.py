"""LoRA adapters as stock diffusers and peft know them: configured, saved, merged."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig
from torch import Tensor, nn

from dpdmd.method.roles import Role
from dpdmd.models.base import ModelAdapter
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.tensors import safetensors_errors


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
    """Write an adapter's `layers`, rank and alpha included, as the file that stock `load_lora_weights` takes.

    layers: as `get_peft_model_state_dict` returns them. Raises OSError when it cannot be written.
    """
    name = adapter.network_name
    options = {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": config.to_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lora-") as temporary, safetensors_errors(folder):
        adapter.pipeline_class.save_lora_weights(temporary, **options)
        os.replace(Path(temporary, LORA_FILE), folder / LORA_FILE)


def merge_lora(adapter: ModelAdapter, network: nn.Module, folder: Path) -> None:
    """Add the update in `folder` to the network's own weights.

    Raises ValueError when it does not fit the network.
    """
    stock = cast("Any", network)  # a diffusers model
    try:
        stock.load_lora_adapter(
            str(folder),
            prefix=adapter.network_name,
            adapter_name="student",
            weight_name=LORA_FILE,
            use_safetensors=True,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder / LORA_FILE} does not fit {adapter.source}: {error}") from None
    stock.fuse_lora()
    stock.unload_lora()
