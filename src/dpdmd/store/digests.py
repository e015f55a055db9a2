"""Identity by content: hashes of texts, files, tensors and networks, which distinguish caches and runs."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from dpdmd.store.files import read_json, write_json

HASHES_FILE = "hashes.json"
THREADS = 4  # that hash files at the same time
SHA256 = re.compile(r"[0-9a-f]{64}")


def key_of(*texts: str) -> str:
    """SHA-256 of several texts in their order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Iterable[Path], memo: Path | None = None) -> list[str]:
    """SHA-256 of the content of each file, several files at a time.

    Names are not trusted, not even of the blobs of a hub cache.
    memo: a folder whose hashes.json remembers hashes by path, size, inode and the time of the last change, which no
    program sets back; None reads every file. A memo that cannot be read or written is done without.
    """
    known = _read_memo(memo)
    paths = list(paths)
    places = [_place(path) for path in paths]
    new = {place: path for place, path in zip(places, paths, strict=True) if place not in known}
    # SHA-256 takes a core for each GB per second; disks of machines with GPUs are faster.
    with ThreadPoolExecutor(THREADS) as threads:
        fresh = dict(zip(new, threads.map(lambda path: sha256_of(path), new.values()), strict=True))
    if memo is not None and fresh:
        with suppress(OSError):
            write_json(memo / HASHES_FILE, known | fresh)
    return [(known | fresh)[place] for place in places]


def _place(path: Path) -> str:
    """What distinguishes a file from another, and from itself before it was written to."""
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def files_digest(files: Mapping[str, Path], *facts: str, memo: Path | None = None) -> str:
    """SHA-256 over `facts`, then the name and content of each file, by name.

    files: name to path, for example the path within a model's folder, so that a folder can be moved. memo: see
    `file_digests`.
    """
    names = sorted(files)
    digests = file_digests([files[name] for name in names], memo)
    lines = [*facts, *(f"{name} {digest}" for name, digest in zip(names, digests, strict=True))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor], *facts: str) -> str:
    """SHA-256 over `facts`, then the name, dtype, shape and bytes of each tensor, by name."""
    digest = hashlib.sha256("\0".join(facts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(network: nn.Module) -> str:
    """A hash of the first 16 values of every parameter: cheap, and enough to notice another network."""
    beginnings = torch.cat([parameter.detach().flatten()[:16].float() for parameter in network.parameters()])
    return hashlib.sha256(beginnings.cpu().numpy().tobytes()).hexdigest()[:16]


def _read_memo(memo: Path | None) -> dict[str, str]:
    if memo is None or not (memo / HASHES_FILE).is_file():
        return {}
    try:
        known = read_json(memo / HASHES_FILE)
    except (ValueError, OSError):
        return {}
    pairs = known.items() if isinstance(known, dict) else ()
    return {place: digest for place, digest in pairs if isinstance(digest, str) and SHA256.fullmatch(digest)}
