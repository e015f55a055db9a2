"""The optimisers of `train.optimiser`: which packages they need, and how many bytes their state takes."""

import math
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

Optimiser = Literal["adamw", "adamw_8bit", "adamw_offloaded", "adafactor"]
# -> the package it requires; the extra of dpdmd with this name installs it.
PACKAGES = {"adamw_8bit": "bitsandbytes"}
STATES = {
    "adamw": "AdamW moments",
    "adamw_8bit": "8-bit moments",
    "adamw_offloaded": "AdamW moments",
    "adafactor": "Adafactor statistics",
}
OFFLOADED = "adamw_offloaded"  # its state is in the CPU's memory
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # numbers of a tensor that is quantised; numbers per scale
TABLES_8BIT = 2 * 4 * 256  # bytes of the fp32 code books of both moments


def missing_optimiser(name: str) -> str | None:
    """The error message if the package that `train.optimiser` requires is missing, else None."""
    package = PACKAGES.get(name)
    if package is None or find_spec(package) is not None:
        return None
    return f'train.optimiser "{name}" needs {package}, which is not installed: pip install "dpdmd[{name}]"'


def optimiser_bytes(shapes: Iterable[tuple[int, ...]], name: Optimiser) -> int:
    """Bytes of an optimiser's state for parameters of these shapes, without its counts of steps."""
    return sum(_bytes(shape, name) for shape in shapes)


def _bytes(shape: tuple[int, ...], name: Optimiser) -> int:
    number = math.prod(shape)
    if name == "adafactor" and len(shape) > 1:
        # One number for each row and for each column of the last two dimensions.
        return 4 * (number // shape[-1] + number // shape[-2])
    if name == "adafactor":
        return 4 * number
    if name == "adamw_8bit" and number >= SMALLEST_8BIT:
        return 2 * (number + 4 * -(-number // BLOCK_8BIT)) + TABLES_8BIT
    return 2 * 4 * number
