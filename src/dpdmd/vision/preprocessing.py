"""Preprocess images for a vision model, bit-identical to the model's own PIL image processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.store.errors import reading
from dpdmd.store.files import read_json
from dpdmd.store.png import to_uint8

FILE = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3  # Pillow's codes of resampling filters, as in preprocessor_config.json
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# The image processor of DINOv3 resizes floats in [0, 1], without rounding; all others resize 8-bit images.
RESIZED_AS_FLOATS = ("DINOv3",)


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a vision model expects.

    resize: (height, width), or the length of the shortest edge, in pixels; None: no resizing.
    crop: (height, width) of the centre crop in pixels; None: no crop.
    mean, std: normalisation of colour channels in [0, 1].
    resample: Pillow's code of the resampling filter.
    as_floats: resize without rounding to 8 bits.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = BICUBIC
    as_floats: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) in [-1, 1] into the model's input.

        Raises ValueError if the resized images are smaller than the crop.
        """
        size = self._size(*images.shape[-2:])
        if size is None or size == tuple(images.shape[-2:]):
            images = (images.float() + 1) / 2
        elif self.as_floats:
            mode = "bilinear" if self.resample == BILINEAR else "bicubic"
            images = F.interpolate((images.float() + 1) / 2, size, mode=mode, antialias=True)
        else:
            images = resized(images, size, self.resample).to(images.device)
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], self.crop, strict=True))
            if top < 0 or left < 0:
                raise ValueError(
                    f"the model crops images to {self.crop} pixels and needs images of at least this size, got "
                    f"{tuple(images.shape[-2:])}"
                )
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (self.mean, self.std))
        return (images - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int] | None:
        if not isinstance(self.resize, int):
            return self.resize
        short, long = min(height, width), max(height, width)
        longer = int(self.resize * long / short)
        return (self.resize, longer) if height <= width else (longer, self.resize)


def resized(images: Tensor, size: tuple[int, int], resample: int = BICUBIC) -> Tensor:
    """Round images (B, 3, H, W) in [-1, 1] to 8 bits and resize them with Pillow.

    size: (height, width) in pixels. resample: Pillow's code of the filter. Returns images in [0, 1] on the CPU.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    arrays = [
        np.asarray(Image.fromarray(image.numpy()).resize((width, height), Image.Resampling(resample)))
        for image in to_uint8(images)
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def clip_preprocessing(size: int) -> Preprocessing:
    """CLIP's preprocessing for a model with `size` x `size` pixels: shortest edge, centre crop, CLIP's mean and std."""
    return Preprocessing(size, (size, size), CLIP_MEAN, CLIP_STD)


def read_preprocessing(name: str | Path, local_files_only: bool = False) -> Preprocessing:
    """Read the preprocessing from the preprocessor_config.json of a folder or hub id.

    It is read directly because transformers' own image processors may require torchvision. Raises ValueError if it is
    missing or broken.
    """
    from transformers.utils import cached_file

    with reading(name, FILE):
        path = cached_file(name, FILE, local_files_only=local_files_only)
    assert path is not None  # by default it raises an error instead
    config = read_json(path)
    with reading(name, FILE):
        return _preprocessing(config)


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    return Preprocessing(
        resize=_size(config.get("size")) if config.get("do_resize", True) else None,
        crop=_crop(config.get("crop_size")) if config.get("do_center_crop", False) else None,
        mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(config.get("image_std", (0.5, 0.5, 0.5))),
        resample=config.get("resample", BICUBIC),
        as_floats=str(config.get("image_processor_type", "")).startswith(RESIZED_AS_FLOATS),
    )


def _size(size: dict[str, int] | int | None) -> tuple[int, int] | int | None:
    if isinstance(size, dict):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return size


def _crop(size: dict[str, int] | int | None) -> tuple[int, int] | None:
    sides = _size(size)
    return (sides, sides) if isinstance(sides, int) else sides
