"""Writing files so that a reader never meets half of one: temporary name in the same folder, then rename."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; renamed to `path` on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder to fill; renamed to `path`, which must not exist, on success, removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(path: str | Path, what: str = "") -> Path:
    """Raises OSError, naming `what`, when the file `path` could not be written; returns the folder that it would be in.

    Found out by writing a byte beside it, or into the nearest folder that exists: permissions say nothing to root, to a
    read-only file system or on a full disk. Nothing is left behind.
    """
    path = Path(path)
    place = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(f"cannot write {what + ' ' if what else ''}{path}: {error.strerror}") from error
    return place


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused (ValueError), since JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises ValueError naming the file when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None


@contextmanager
def safetensors_errors(path: str | Path) -> Iterator[None]:
    """What safetensors raises when it cannot write, to a full disk say, as an OSError that names `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically. Raises OSError when they cannot be written."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary, safetensors_errors(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read safetensors. Raises ValueError naming the file when it is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file ({error})") from None


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, clamped: what a PNG keeps."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one image (3, H, W) in [-1, 1] as PNG atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image[None])[0].numpy()).save(temporary)


def read_png(path: str | Path) -> Tensor:
    """Read an image as (3, H, W) fp32 in [-1, 1]. Raises ValueError naming the file when it is missing or broken."""
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
