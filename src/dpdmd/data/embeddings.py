"""Prompts' embeddings on disk: encoded once for all runs with the same encoders, read by memory map.

    FOLDER/KEY/SHA256.safetensors

KEY names the text encoders by their content, and the dtype. A shard holds up to 256 prompts, names them by hash in its
header, and is itself called by the hash of its content: writers never meet, and what was damaged is found and encoded
again. Only the shards in use are mapped, so that memory does not grow with the number of prompts.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.models.base import ModelAdapter
from dpdmd.models.parts import local_folder
from dpdmd.store.digests import sha256_of
from dpdmd.store.files import read_json, write_json
from dpdmd.store.tensors import write_tensors

CHUNK = 64  # prompts encoded at a time
SHARD = 256  # prompts in a file
MAX_OPEN_SHARDS = 64
STALE_SECONDS = 3600
HASHES_FILE = "hashes.json"
BLOB = re.compile(r"[0-9a-f]{64}")


def default_folder() -> Path:
    """$DPDMD_CACHE, else dpdmd/prompts in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DPDMD_CACHE") or Path(home, "dpdmd", "prompts"))


class EmbeddingCache:
    """The embeddings that one set of text encoders has made, in one dtype, in a folder that runs share."""

    def __init__(self, folder: str | Path, adapter: ModelAdapter, dtype: torch.dtype = torch.float32):
        """Raises OSError when the folder cannot be made."""
        self.root, self.adapter, self.dtype = Path(folder), adapter, dtype
        name = str(dtype).removeprefix("torch.")
        self.folder = self.root / f"{encoders_digest(adapter, self.root)[:32]}-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def ensure(self, prompts: list[str], *, progress: bool = True, say: Callable[[str], None] = print) -> None:
        """Encode what is missing, a shard at a time, so that an interrupted call goes on where it was.

        What other processes have written meanwhile is used. `say` is told of damaged shards, which are removed, and of
        the size before anything is written. Raises OSError when the disk is too small.
        """
        missing = self.missing(prompts, say)
        if not missing:
            return
        bar = tqdm(total=len(missing), desc="encoding prompts", unit="prompt", disable=not progress)
        for start in range(0, len(missing), SHARD):
            rows = [row for chunk in self._encoded(missing[start : start + SHARD]) for row in chunk]
            if start == 0:
                self._announce(rows, len(missing), say)
            self._write(missing[start : start + SHARD], rows)
            bar.update(len(rows))
        bar.close()
        self.missing(prompts, say)

    def missing(self, prompts: list[str], say: Callable[[str], None] = print) -> list[str]:
        """Those prompts, each once, that have to be encoded."""
        wanted = {_key(prompt): prompt for prompt in prompts}
        self._scan(wanted.keys(), say)
        return [prompt for key, prompt in wanted.items() if key not in self._places]

    def condition(self, prompts: list[str]) -> Condition:
        """Conditioning of prompts that `ensure` has seen, in fp32 on the CPU."""
        return concatenate(self._read(*self._places[_key(prompt)]) for prompt in prompts)

    def _encoded(self, prompts: list[str]) -> Iterator[list[dict[str, Tensor]]]:
        for start in range(0, len(prompts), CHUNK):
            condition = self.adapter.encode(prompts[start : start + CHUNK])
            tensors = {name: self._stored(tensor) for name, tensor in condition.tensors.items()}
            yield [_trimmed({name: t[i] for name, t in tensors.items()}) for i in range(len(condition))]

    def _stored(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _announce(self, rows: list[dict[str, Tensor]], number: int, say: Callable[[str], None]) -> None:
        size = sum(tensor.nbytes for row in rows for tensor in row.values()) * number // len(rows)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OSError(
                f"the embeddings of {number} prompts need about {size / 2**30:.1f} GiB in {self.folder}, where "
                f"{free / 2**30:.1f} are free; name another folder (data.cache) or encode while training (--no-cache)"
            )
        say(f"encoding {number} prompts once, about {size / 2**20:.0f} MiB, into {self.folder}")

    def _write(self, prompts: list[str], rows: list[dict[str, Tensor]]) -> None:
        tensors = {f"{i}/{name}": t.clone() for i, row in enumerate(rows) for name, t in row.items()}
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            write_tensors(temporary, tensors, {"prompts": json.dumps([_key(prompt) for prompt in prompts])})
            os.replace(temporary, self.folder / f"{sha256_of(temporary)}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)

    def _scan(self, wanted: Any, say: Callable[[str], None]) -> None:
        """Find the shards that hold wanted prompts; those not seen before are verified first."""
        known = {path for path, _ in self._places.values()}
        for path in sorted(set(self.folder.glob("*.safetensors")) - known):
            with suppress(FileNotFoundError):  # another process was faster to remove it
                keys = _prompts_of(path)
                if keys is None or (wanted & set(keys) and sha256_of(path) != path.stem):
                    say(f"the cached embeddings {path} are damaged; they are encoded again")
                    path.unlink()
                elif wanted & set(keys):
                    for row, key in enumerate(keys):
                        self._places.setdefault(key, (path, row))
        for path in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # its writer has renamed it
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _read(self, path: Path, row: int) -> Condition:
        if path not in self._open:
            while len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            shard = safe_open(path, framework="pt")
            keys = shard.keys()
            names = [key.removeprefix("0/") for key in keys if key.startswith("0/")]
            self._open[path] = shard, names
        self._open.move_to_end(path)
        shard, names = self._open[path]
        tensors = {name: shard.get_tensor(f"{row}/{name}")[None] for name in names}
        return Condition({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def _prompts_of(path: Path) -> list[str] | None:
    """The keys of a shard's prompts from its header; None when it cannot be read. FileNotFoundError when it is gone."""
    try:
        with safe_open(path, framework="pt") as shard:
            return json.loads(shard.metadata()["prompts"])
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def _trimmed(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """One prompt without the padding behind its last token, where a mask (L,) says where that is."""
    masks = [tensor for name, tensor in row.items() if name.endswith("mask")]
    if not masks:
        return row
    length = max(int(masks[0].nonzero().max()) + 1 if masks[0].any() else 1, 1)
    return {name: t[:length] if t.ndim == 2 or name.endswith("mask") else t for name, t in row.items()}


def encoders_digest(adapter: ModelAdapter, memo: Path) -> str:
    """SHA-256 over pipeline class, token limits and every file of the tokenizers and text encoders; see below."""
    return pipeline_digest(adapter, memo, without=(adapter.network_name, "vae", "scheduler"))


def pipeline_digest(adapter: ModelAdapter, memo: Path, *, without: tuple[str, ...]) -> str:
    """SHA-256 over pipeline class, token limits and every file of a pipeline's parts but those named in `without`.

    `memo`: a folder that remembers the hashes of files by path, size and time.
    """
    base = local_folder(adapter.source)
    index = read_json(base / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] and name not in without]
    known = read_json(memo / HASHES_FILE) if (memo / HASHES_FILE).is_file() else {}
    lines, fresh = [adapter.pipeline_class.__name__, repr(adapter.token_limits)], {}
    for path in sorted(path for name in parts for path in (base / name).rglob("*") if path.is_file()):
        stat = path.stat()
        place = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        blob = path.resolve().name
        if BLOB.fullmatch(blob):  # a hub cache calls a file by its hash
            digest = blob
        else:
            digest = known.get(place) or fresh.setdefault(place, sha256_of(path))
        lines.append(f"{path.relative_to(base)} {digest}")
    if fresh:
        write_json(memo / HASHES_FILE, known | fresh)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
