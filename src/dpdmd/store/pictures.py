"""Picture files as people see them, and which files of a folder are pictures."""

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdmd.store.errors import library_errors

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Folders that an operating system or a file server makes for itself.
NOT_OURS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
WHITE = (255, 255, 255)


def read_picture(path: str | Path) -> "Image":
    """A picture file as 8-bit RGB, the way a viewer shows it on a white page.

    The orientation in its EXIF data is applied, transparent parts are laid on white, 16 bits are scaled to 8, and CMYK
    goes through the profile in the file. Of an animation it is the first picture.
    Raises ValueError naming the file if it is missing, broken or too large.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    what = f"{path} is not a readable image"
    with library_errors(what, "replace it or remove it from the folder"), Image.open(path) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


def _as_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image).convert("RGB")
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, (*WHITE, 255)), seen).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: "Image") -> "Image":
    """8-bit grey of 16 bits per pixel: value / 257, rounded."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels are {image.mode}, not 8 or 16 bits of brightness")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _from_cmyk(image: "Image") -> "Image":
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    found: Any = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return found


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths, in natural order, whose names a user gave: none that begin with a dot or are a system's own."""
    return sorted(
        (path for path in paths if not path.name.startswith(".") and path.name not in NOT_OURS),
        key=lambda path: natural_key(path.name),
    )


def pictures_in(folder: Path) -> list[Path]:
    """The visible picture files of a folder, in natural order. Links count as what they lead to."""
    return [path for path in visible(folder.iterdir()) if path.suffix.lower() in SUFFIXES]


def natural_key(name: str) -> tuple[Any, ...]:
    """A sorting key in which numbers count as numbers: img_2 comes before img_10."""
    parts = re.split(r"([0-9]+)", name)
    return *((int(part) if i % 2 else 0, part) for i, part in enumerate(parts)), name
