"""Caches: where they are by default, and computing through one what is not there yet."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from dpdmd.store.names import expanded
from dpdmd.store.progress import tracked
from dpdmd.store.tensor_store import TensorStore

logger = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["prompts", "images", "teacher_samples", "hashes"]
Row = dict[str, Tensor]


def cache_folder(kind: Kind) -> Path:
    """The default folder of a cache.

        $DPDMD_CACHE/KIND, else $XDG_CACHE_HOME/dpdmd/KIND, else ~/.cache/dpdmd/KIND

    kind: "prompts" (embeddings), "images" (what networks make of images), "teacher_samples" or "hashes" (of files).
    Raises ValueError when neither variable is set and no home directory is known.
    """
    if own := os.environ.get("DPDMD_CACHE"):
        return Path(expanded(own)) / kind
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(expanded(shared)) / "dpdmd" / kind
    try:
        return Path.home() / ".cache" / "dpdmd" / kind
    except RuntimeError:
        raise ValueError(
            "no home directory is known, so there is no default folder for caches; set the environment variable "
            "DPDMD_CACHE to a folder"
        ) from None


def hash_memo() -> Path | None:
    """The folder that remembers hashes of files (`digests.file_digests`); None if there is no place for it."""
    try:
        return cache_folder("hashes")
    except ValueError:
        return None


def through_cache(
    folder: Path | None, keys: list[str], compute: Callable[[list[int]], Iterable[Row]], *, what: str
) -> list[Row]:
    """The row of each key: read from the `TensorStore` in `folder`, or computed and stored there.

    compute: yields the rows of the items with the given numbers, in their order. Items with the same key are computed
    once. Each row is stored as soon as it is there, so that an interrupted call continues where it was. folder: None
    stores nothing, and neither does one that cannot be written to, with a warning. what: label of the progress bar.
    """
    store = None if folder is None else TensorStore(folder)
    known = {} if store is None else {key: store.read(key) for key in dict.fromkeys(keys)}
    rows = {key: row for key, row in known.items() if row is not None}
    missing = {key: number for number, key in enumerate(keys) if key not in rows}
    numbers = sorted(missing.values())
    found = compute(numbers) if numbers else []
    for number, row in tracked(zip(numbers, found, strict=True), what, len(numbers), unit="image"):
        rows[keys[number]] = row
        if store is not None:
            try:
                store.write(keys[number], row)
            except OSError as error:
                logger.warning("%s; going on without", error)
                store = None
    return [rows[key] for key in keys]


def batches(items: Iterable[T], size: int, alike: Callable[[T, T], bool] = lambda first, other: True) -> Iterator[list]:
    """Items in lists of at most `size`; the items of a list are all `alike` its first."""
    batch: list[T] = []
    for item in items:
        if batch and (len(batch) == size or not alike(batch[0], item)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
