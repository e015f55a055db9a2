"""Tensors on disk, found by key: written atomically and verified when read. Damaged ones are removed, as if missing.

    FOLDER/KE/KEY.safetensors      TensorStore: one entry per file
    FOLDER/SHA256.safetensors      TensorGroups: many entries per file, memory-mapped

A key names everything that its tensors depend on (`digests.key_of`): processes share a folder without locks, since all
that write a key write the same. Entry i of a file is stored as tensors "i/NAME"; the header lists the keys and holds a
SHA-256 over keys, names, dtypes, shapes and values.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpdmd.store.digests import tensors_digest
from dpdmd.store.leftovers import remove_leftovers
from dpdmd.store.tensors import write_tensors

Entry = dict[str, Tensor]

# One item of metadata holds all: safetensors writes several in random order, and equal entries must be equal files.
HEADER = "dpdmd"
MAX_OPEN_FILES = 64

logger = logging.getLogger(__name__)


class TensorStore:
    """A folder with one file per key, for entries that are made one by one."""

    def __init__(self, folder: str | Path):
        """The folder is made by the first `write`."""
        self.folder = Path(folder)
        self._swept: set[Path] = set()

    def read(self, key: str) -> Entry | None:
        """The tensors of a key on the CPU; None if there are none or they are damaged."""
        try:
            found = _verified(self._path(key), {key})
        except OSError:
            return None
        if found is None:
            return None
        return {name.removeprefix("0/"): tensor.clone() for name, tensor in found.tensors.items()}

    def write(self, key: str, tensors: Entry) -> None:
        """Store the tensors of a key. Raises OSError when they cannot be written."""
        path = self._path(key)
        if path.parent not in self._swept:
            remove_leftovers(path.parent)
            self._swept.add(path.parent)
        _write(path, *_packed({key: tensors}))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class TensorGroups:
    """A folder of files with many entries each, for hundreds of thousands of keys.

    Only headers are read to find a key, and only files in use are mapped, so that memory does not grow with the number
    of entries.
    """

    def __init__(self, folder: str | Path):
        """The folder is made by the first `write`."""
        self.folder = Path(folder)
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys`, each once, that `read` cannot give.

        Files that other processes have written since are found. Files that hold one of `keys` are verified before their
        first use.
        """
        wanted = dict.fromkeys(keys)
        known = {path for path, _ in self._places.values()}
        files = (path for path in self.folder.glob("*.safetensors") if path.name[0] != "." and path not in known)
        for path in sorted(files):
            with suppress(OSError):  # another process was faster to remove it, or it may not be read
                found = _verified(path, wanted)
                for row, key in enumerate(found.keys if found else []):
                    self._places.setdefault(key, (path, row))
        remove_leftovers(self.folder)
        return [key for key in wanted if key not in self._places]

    def read(self, key: str) -> Entry:
        """The tensors of a key that `missing` has been asked for and has found; they lie in the mapped file."""
        path, row = self._places[key]
        if path not in self._open:
            while len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)
            file = safe_open(path, framework="pt")
            names = [name.removeprefix("0/") for name in file.keys() if name.startswith("0/")]  # noqa: SIM118
            self._open[path] = file, names
        self._open.move_to_end(path)
        file, names = self._open[path]
        return {name: file.get_tensor(f"{row}/{name}") for name in names}

    def write(self, entries: dict[str, Entry]) -> None:
        """Store entries, all with tensors of the same names, in one file. Raises OSError when it cannot be written."""
        tensors, header = _packed(entries)
        _write(self.folder / f"{header['sha256']}.safetensors", tensors, header)


def _packed(entries: dict[str, Entry]) -> tuple[Entry, dict[str, Any]]:
    keys = list(entries)
    # Copies: safetensors refuses tensors that share memory, such as rows of one batch.
    tensors = {
        f"{i}/{name}": tensor.detach().cpu().clone()
        for i, entry in enumerate(entries.values())
        for name, tensor in entry.items()
    }
    return tensors, {"keys": keys, "sha256": tensors_digest(tensors, *keys)}


def _write(path: Path, tensors: Entry, header: dict[str, Any]) -> None:
    try:
        write_tensors(path, tensors, {HEADER: json.dumps(header)})
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"the cache {path.parent} cannot be written to ({reason}): name another one by data.cache, --cache or the "
            "environment variable DPDMD_CACHE",
        ) from error


class _File(NamedTuple):
    keys: list[str]
    tensors: Entry


def _verified(path: Path, wanted: Iterable[str]) -> _File | None:
    """What a file holds that has a wanted key; None for any other, and for a damaged one, which is removed.

    Raises FileNotFoundError when there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            header = {"keys": []} if text is None else json.loads(text)  # something else wrote it
            if set(wanted).isdisjoint(header["keys"]):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if tensors_digest(tensors, *header["keys"]) == header["sha256"]:
                return _File(header["keys"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError):
        pass
    logger.warning("%s is damaged and is removed; what it held is made again", path)
    with suppress(OSError):
        path.unlink()
    return None
