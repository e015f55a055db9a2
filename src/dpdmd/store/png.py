"""Images in [-1, 1] to and from PNG files."""

from pathlib import Path

import torch
from torch import Tensor

from dpdmd.store.files import atomic_path


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8 on the CPU, clamped and rounded as in a PNG."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one image (3, H, W) in [-1, 1] as a PNG atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image[None])[0].numpy()).save(temporary)


def read_png(path: str | Path) -> Tensor:
    """Read an image as (3, H, W) fp32 in [-1, 1]. Raises ValueError naming the file if it is missing or broken."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
