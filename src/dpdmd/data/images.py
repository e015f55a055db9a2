"""A folder of images with prompts: real samples for a discriminator, instead of the teacher's."""

import os
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.data.prompts import COLUMN
from dpdmd.data.tables import read_utf8, table_rows
from dpdmd.store.digests import key_of, sha256_of
from dpdmd.store.names import did_you_mean, expanded
from dpdmd.store.pictures import SUFFIXES, pictures_in, read_picture, visible

METADATA = ("metadata.jsonl", "metadata.csv")
NOT_READ = ("metadata.parquet", "metadata.json", "metadata.tsv")
CAPTIONS = (".txt", ".caption")


def captioned_images(folder: str | Path, column: str = COLUMN) -> list[tuple[Path, str]]:
    """(image, prompt) of each picture file in a folder and its sub-folders, in natural order (img_2 before img_10).

    The prompt of NAME.png is `column` of the row of metadata.jsonl or metadata.csv, in its folder or in one above, with
    the "file_name" NAME.png as seen from there, else the content of NAME.txt or NAME.caption, else empty. Names that
    begin with a dot are passed over. Raises ValueError if the folder is missing, has no image, or has metadata that is
    broken or of another kind.
    """
    folder = Path(expanded(folder))
    if not folder.is_dir():
        raise ValueError(f"no such folder of images: {folder}{did_you_mean(folder)}")
    images, tables = _found(folder)
    if not images:
        raise ValueError(f"{folder} has no images: {', '.join(SUFFIXES)} are read")
    prompts: dict[Path, str] = {}
    for table in tables:
        own = _metadata(table, column)
        if missing := sorted(str(path.relative_to(table.parent)) for path in own.keys() - set(images)):
            raise ValueError(
                f"{table} names {len(missing)} images that are not in the folder, the first is {missing[0]}"
            )
        prompts |= own
    return [(path, prompts.get(path) or _text(path)) for path in images]


def _found(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the tables of a folder and its visible sub-folders, those of the folder itself first."""
    for name in NOT_READ:
        if (folder / name).is_file():
            raise ValueError(f"{folder / name} is not read; write its captions as {' or '.join(METADATA)}")
    images, tables = pictures_in(folder), [folder / name for name in METADATA if (folder / name).is_file()]
    for sub_folder in visible(path for path in folder.iterdir() if path.is_dir()):
        more = _found(sub_folder)
        images, tables = images + more[0], tables + more[1]
    return images, tables


def read_image(path: Path, height: int, width: int) -> Tensor:
    """An image as (3, height, width) in [-1, 1]: the largest centre crop of that aspect ratio, resampled.

    It is seen as by `store.pictures.read_picture`. Raises OSError naming the file if it is broken.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        fitted = ImageOps.fit(read_picture(path), (width, height), Image.Resampling.LANCZOS)
    except ValueError as error:
        raise OSError(str(error)) from None  # which all processes hear of
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def images_digest(images: list[tuple[Path, str]]) -> str:
    """SHA-256 over name, content and prompt of each image."""
    return key_of(*(part for path, prompt in images for part in (path.name, sha256_of(path), prompt)))


def _metadata(table: Path, column: str) -> dict[Path, str]:
    """{image: prompt} of a table, where it stands in the order of its rows."""
    prompts = {}
    for where, row in table_rows(table):
        try:
            name, prompt = row["file_name"], row[column]
            path = Path(os.path.normpath(table.parent / name))
        except (KeyError, TypeError):
            raise ValueError(f'{where} needs "file_name" and {column!r} (data.column), got {row}') from None
        prompts[path] = str(prompt if prompt is not None else "").strip()
    return prompts


def _text(image: Path) -> str:
    files = (image.with_suffix(suffix) for suffix in CAPTIONS)
    return next((read_utf8(file).strip() for file in files if file.is_file()), "")
