"""Stable Diffusion XL with v prediction at the size of a test; see test_contract.py."""

from pathlib import Path

import tiny_sdxl
from tiny_sdxl import GUIDANCE_SCALE, IMAGE_SIZE, STOCK, prepare, stock_arguments, unpacked

__all__ = ["GUIDANCE_SCALE", "IMAGE_SIZE", "STOCK", "prepare", "save", "stock_arguments", "unpacked"]


def save(folder: Path) -> None:
    """The same random pipeline, its network's output read as v."""
    tiny_sdxl.save(folder, prediction_type="v_prediction")
