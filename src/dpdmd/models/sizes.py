"""Sizes in a configuration that no network has, found before time and memory are spent on them.

A library builds the network that a configuration describes and then looks at the weights. With 10^9 layers it would
build for days, and with a width of 10^6 it would take all memory. Here building ends as soon as the network is larger
than its files.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from dpdmd.store.errors import InputError, reading
from dpdmd.store.files import read_json

CONFIG = "config.json"
LARGEST = 2**24  # of a whole number; vocabularies have 2^18 tokens, the longest contexts 10^7
LAYERS = 10**4
COUNTS = ("layers", "blocks", "depth", "axes")  # in names of numbers of which something is made for each one
UNBOUNDED = ("theta", "base")  # in names of numbers that are no sizes: of a rotary embedding
SIDE = 2**14  # pixels, as in recipes
# A network may have more than its files: weights that are tied, computed or made when they are needed.
TENSORS, NUMBERS = 10**4, 2**26


def require_plausible(config: Any, source: str | Path, part: str, where: str = "") -> None:
    """Raises ValueError for a whole number in a configuration that no network has."""
    if isinstance(config, dict | list):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            require_plausible(value, source, part, f"{where}.{key}" if where else str(key))
    elif isinstance(config, int) and not any(word in where for word in UNBOUNDED):
        limit = LAYERS if any(word in where for word in COUNTS) else LARGEST
        if abs(config) > limit:
            raise InputError(f"{source}: its {part} configuration has {where} = {_short(config)}, above {limit}")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**30 else f"a number of {value.bit_length()} bits"


def require_plausible_file(folder: Path, source: str | Path, part: str) -> None:
    """`require_plausible` of the config.json in a folder, if there is one."""
    if (folder / CONFIG).is_file():
        require_plausible(read_json(folder / CONFIG), source, part)


@contextmanager
def no_larger_than_files(folder: Path, source: str | Path, part: str) -> Iterator[None]:
    """Raises ValueError in the block when a network is built that is far larger than the weights in the folder.

    Nothing is checked for what is not a folder here: a hub id.
    """
    if not folder.is_dir():
        yield
        return
    require_plausible_file(folder, source, part)
    tensors = numbers = 0
    for path in folder.glob("*.safetensors"):
        with reading(source, f"{part} ({path.name})"), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                tensors += 1
                numbers += math.prod(file.get_slice(key).get_shape())
    left = {"tensors": 4 * tensors + TENSORS, "numbers": 4 * numbers + NUMBERS}

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        left["tensors"] -= 1
        left["numbers"] -= 0 if tensor is None else tensor.numel()
        if min(left.values()) < 0:
            raise InputError(
                f"{source}: cannot read its {part}: its configuration describes a network far larger than its files, "
                f"which hold {tensors} tensors with {numbers} numbers; it is damaged, or belongs to other weights"
            )

    hooks = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def build_empty(component_class: Any, source: str | Path, subfolder: str) -> None:
    """Build a network of diffusers without memory for it, to see how large it is.

    Loading takes the memory of each tensor and gives it back. What cannot be built in this way says nothing.
    """
    config = component_class.load_config(source, subfolder=subfolder)
    with torch.device("meta"), suppress(NotImplementedError, RuntimeError):
        component_class.from_config(config)
