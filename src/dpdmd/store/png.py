"""Images in [-1, 1] to PNG files and from picture files."""

from pathlib import Path

import torch
from torch import Tensor

from dpdmd.store.files import atomic_path
from dpdmd.store.pictures import read_picture


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8 on the CPU, clamped and rounded as in a PNG."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one image (3, H, W) in [-1, 1] as a PNG atomically. Raises FloatingPointError unless it is finite."""
    if not image.isfinite().all():
        raise FloatingPointError(f"the image for {path} has values that are not finite")
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image[None])[0].numpy()).save(temporary)


def read_png(path: str | Path) -> Tensor:
    """Read an image as people see it (`read_picture`) as (3, H, W) fp32 in [-1, 1]. Raises ValueError like that."""
    import numpy as np

    return torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1).float() / 127.5 - 1
