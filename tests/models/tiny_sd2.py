"""Stable Diffusion 2.1 at the size of a test: v prediction; see test_contract.py for what a family's module holds."""

from pathlib import Path

import tiny_sd1
from tiny_sd1 import GUIDANCE_SCALE, IMAGE_SIZE, STOCK, prepare, stock_arguments, unpacked

__all__ = ["GUIDANCE_SCALE", "IMAGE_SIZE", "STOCK", "prepare", "save", "stock_arguments", "unpacked"]


def save(folder: Path) -> None:
    """The same random pipeline, its network's output read as v."""
    tiny_sd1.save(folder, prediction_type="v_prediction")
