"""What networks made of images, on disk: computed once, whatever is scored again, and wherever scoring was stopped.

    FOLDER/KE/KEY.safetensors

KEY is a hash of everything that the result depends on: the image's content, the network's weights, its preprocessing.
A file is one image's results; it is written when they are there, so that an interrupted scoring goes on.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from dpdmd.store.tensors import read_tensors, write_tensors

T = TypeVar("T")
Row = dict[str, Tensor]


def default_folder() -> Path:
    """$DPDMD_CACHE/features, else dpdmd/features in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DPDMD_CACHE") or Path(home, "dpdmd")) / "features"


def key_of(*parts: str) -> str:
    """One key for several texts, in this order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def through_cache(
    folder: Path | None, keys: list[str], compute: Callable[[list[int]], Iterable[Row]], *, what: str
) -> list[Row]:
    """The row of each key: from `folder`, or computed and kept there.

    compute: rows of the items with these numbers, in their order, one after the other. Items with the same key are
    computed once; a damaged file counts as missing. folder: None keeps nothing. what: of what, for the progress bar.
    Raises OSError when the folder cannot be written to.
    """
    rows = {} if folder is None else _read(folder, keys)
    missing = {key: number for number, key in enumerate(keys) if key not in rows}
    numbers = sorted(missing.values())
    found = compute(numbers) if numbers else []
    for number, row in tqdm(zip(numbers, found, strict=True), what, len(numbers), leave=False, unit="image"):
        rows[keys[number]] = row
        if folder is not None:
            path = _place(folder, keys[number])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, row)
    return [rows[key] for key in keys]


def batches(items: Iterable[T], size: int, alike: Callable[[T, T], bool] = lambda first, other: True) -> Iterator[list]:
    """Items in lists of at most `size`, all of one list `alike` its first."""
    batch: list[T] = []
    for item in items:
        if batch and (len(batch) == size or not alike(batch[0], item)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _read(folder: Path, keys: list[str]) -> dict[str, Row]:
    rows = {}
    for key in dict.fromkeys(keys):
        path = _place(folder, key)
        if path.exists():
            try:
                rows[key] = read_tensors(path)
            except ValueError:
                path.unlink(missing_ok=True)
    return rows


def _place(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"
