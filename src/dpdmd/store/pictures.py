"""Picture files as people see them, and which files of a folder are pictures."""

import re
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdmd.store.errors import library_errors

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
# Pictures as people have them, which are not read. To pass them over would leave them out of a score without a word.
NOT_READ = (".heic", ".heif", ".jxl", ".jp2", ".tga", ".ppm", ".psd", ".svg", ".dng")
# Folders that an operating system or a file server makes for itself.
NOT_OURS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
Size = tuple[int, int]  # height and width in pixels
WHITE = (255, 255, 255)
# What is decoded, whatever a file's name says. Pillow would give some other formats to programs such as Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
# EXIF's tag of how a camera was held, and its values for one that lay on its side.
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)
SRGB_GAMMA = 0.45455  # what a PNG says whose values are as a screen shows them


def read_picture(path: str | Path) -> "Image":
    """A picture file as 8-bit RGB, the way a viewer shows it on a white page.

    The orientation in its EXIF data is applied, transparent parts are laid on white, 16 bits are scaled to 8, and
    colours go through the profile in the file, or its gamma. Of an animation it is the first picture.
    Raises ValueError naming the file if it is missing, broken or too large.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    what = f"{path} is not a readable image"
    with library_errors(what, "replace it or remove it from the folder"), Image.open(path, formats=FORMATS) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


def picture_size(path: str | Path) -> Size:
    """Height and width in pixels of a picture file as `read_picture` reads it; only its header is read.

    Raises ValueError like `read_picture`.
    """
    from PIL import Image

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    what = f"{path} is not a readable image"
    with library_errors(what, "replace it or remove it from the folder"), Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        lies = image.getexif().get(ORIENTATION) in LYING
    return (width, height) if lies else (height, width)


def size_name(size: Size) -> str:
    """HEIGHTxWIDTH, as folders and metrics of one of several sizes are called."""
    return f"{size[0]}x{size[1]}"


def _as_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image).convert("RGB")
    if not image.has_transparency_data:
        return _on_screen(image, image)
    seen = image.convert("RGBA")
    shown = _on_screen(seen.convert("RGB"), image)
    shown.putalpha(seen.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", seen.size, (*WHITE, 255)), shown).convert("RGB")


def _from_deep(image: "Image") -> "Image":
    """8-bit grey of 16 bits per pixel: value / 257, rounded."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if (clear := image.info.get("transparency")) is not None:
        values[values == clear] = 65535
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels are {image.mode}, not 8 or 16 bits of brightness")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _on_screen(colours: "Image", source: "Image") -> "Image":
    """Colours without transparency in sRGB, by the profile or the gamma of the file that they are from.

    A profile that cannot be used is passed over, as viewers do.
    """
    from PIL import ImageCms

    if profile := source.info.get("icc_profile"):
        plain = colours if colours.mode in ("L", "CMYK") else colours.convert("RGB")
        with suppress(ImageCms.PyCMSError, OSError):
            screen = ImageCms.createProfile("sRGB")
            given = ImageCms.ImageCmsProfile(BytesIO(profile))
            found: Any = ImageCms.profileToProfile(plain, given, screen, outputMode="RGB")
            return found
    plain = colours.convert("RGB")
    gamma = source.info.get("gamma")
    if not gamma or "srgb" in source.info or abs(gamma - SRGB_GAMMA) < 0.01:
        return plain
    return plain.point([round(255 * _srgb((value / 255) ** (1 / gamma))) for value in range(256)] * 3)


def _srgb(light: float) -> float:
    """The value in sRGB (IEC 61966-2-1) of an amount of light in [0, 1]."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths, in natural order, whose names a user gave: none that begin with a dot or are a system's own."""
    return sorted(
        (path for path in paths if not path.name.startswith(".") and path.name not in NOT_OURS),
        key=lambda path: natural_key(path.name),
    )


def pictures_in(folder: Path) -> list[Path]:
    """The visible picture files of a folder, in natural order. Links count as what they lead to.

    Raises ValueError for a picture of a kind that is not read.
    """
    files = visible(folder.iterdir())
    if other := next((path for path in files if path.suffix.lower() in NOT_READ), None):
        raise ValueError(f"{other} is a picture of a kind that is not read; write it as PNG or move it elsewhere")
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def natural_key(name: str) -> tuple[Any, ...]:
    """A sorting key in which numbers count as numbers: img_2 comes before img_10."""
    parts = re.split(r"([0-9]+)", name)
    return *((int(part) if i % 2 else 0, part) for i, part in enumerate(parts)), name
