"""LoRA adapters as stock diffusers and peft know them: made, saved, merged."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig as PeftLoraConfig
from torch import Tensor, nn

from dpdmd.method.roles import Role
from dpdmd.models.base import ModelAdapter
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.tensors import safetensors_errors

if TYPE_CHECKING:
    from dpdmd.recipe.schema import LoraConfig


def lora_configs(config: "LoraConfig", adapter: ModelAdapter, network: nn.Module) -> dict[Role, PeftLoraConfig]:
    """peft's configuration for every role that trains an adapter.

    Raises ValueError for a target that is no linear layer of the network.
    """
    targets = config.targets or adapter.lora_targets
    linear = [f".{name}" for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    unknown = [target for target in targets if not any(name.endswith(f".{target}") for name in linear)]
    if config.roles and unknown:
        endings = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"lora.targets: {', '.join(unknown)} is no linear layer of {adapter.source}; their names end in "
            f"{', '.join(endings)}"
        )
    return {
        role: PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,
            target_modules=list(targets),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
        )
        for role in config.roles
    }


def save_lora(adapter: ModelAdapter, layers: dict[str, Tensor], config: PeftLoraConfig, folder: Path) -> None:
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
    try:
        network.load_lora_adapter(
            str(folder),
            prefix=adapter.network_name,
            adapter_name="student",
            weight_name=LORA_FILE,
            use_safetensors=True,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder / LORA_FILE} does not fit {adapter.source}: {error}") from None
    network.fuse_lora()
    network.unload_lora()
