"""A folder of images with prompts: real samples for a discriminator, instead of the teacher's."""

from pathlib import Path

import torch
from torch import Tensor

from dpdmd.data.prompts import COLUMN
from dpdmd.store.digests import key_of, sha256_of
from dpdmd.store.jsonl import parse_rows
from dpdmd.store.names import did_you_mean, expanded

SUFFIXES = (".png", ".jpg", ".jpeg")
METADATA = "metadata.jsonl"


def captioned_images(folder: str | Path, column: str = COLUMN) -> list[tuple[Path, str]]:
    """(image, prompt) of each PNG or JPEG file in a folder, sorted by name.

    The prompt of NAME.png is `column` of the line of metadata.jsonl with "file_name": "NAME.png", else the content of
    NAME.txt, else empty. Raises ValueError if the folder is missing, has no image, or has broken metadata.
    """
    folder = Path(expanded(folder))
    if not folder.is_dir():
        raise ValueError(f"no such folder of images: {folder}{did_you_mean(folder)}")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f"{folder} has no images: {', '.join(SUFFIXES)} are read")
    prompts = _metadata(folder / METADATA, column)
    if missing := sorted(prompts.keys() - {path.name for path in images}):
        raise ValueError(
            f"{folder / METADATA} names {len(missing)} images that are not in the folder, the first is {missing[0]}"
        )
    return [(path, prompts.get(path.name) or _text(path.with_suffix(".txt"))) for path in images]


def read_image(path: Path, height: int, width: int) -> Tensor:
    """An image as (3, height, width) in [-1, 1]: the largest centre crop of that aspect ratio, resampled.

    Raises OSError naming the file if it is broken.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNGs
        raise OSError(f"{path} is not a readable image ({error}); replace it or remove it from the folder") from None
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def images_digest(images: list[tuple[Path, str]]) -> str:
    """SHA-256 over name, content and prompt of each image."""
    return key_of(*(part for path, prompt in images for part in (path.name, sha256_of(path), prompt)))


def _metadata(path: Path, column: str) -> dict[str, str]:
    if not path.is_file():
        return {}
    prompts = {}
    for number, row in parse_rows(path.read_text(encoding="utf-8"), path):
        try:
            name, prompt = row["file_name"], row[column]
        except (KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number} needs "file_name" and {column!r} (data.column), got {row}'
            ) from None
        prompts[name] = str(prompt).strip()
    return prompts


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
