"""Where a network's weights are, and which they are."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from dpdmd.store.digests import sha256_of

FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Weights:
    """The folder of a network. name: as it was asked for; revision: the hub's commit, None for a folder of one's own;
    sha256: over the names and contents of all its files (FILES)."""

    name: str
    folder: Path
    revision: str | None
    sha256: str

    def facts(self) -> dict[str, str | None]:
        """What to record of it."""
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}


def find_weights(name: str | Path, *, local_files_only: bool = False) -> Weights:
    """The folder `name`, or the snapshot of a hub id, downloaded where it is not cached.

    Raises ValueError, naming it, when there is none, or no safetensors file in it.
    """
    folder, revision = Path(name), None
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError

        try:
            folder = Path(snapshot_download(str(name), allow_patterns=FILES, local_files_only=local_files_only))
        except (OSError, ValueError, HTTPError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{str(name)!r} is no folder and no hub id that can be had ({reason})") from None
        revision = folder.name
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{str(name)!r} holds no .safetensors file; pickles (.pt, .bin, .pth) are not read")
    return Weights(str(name), folder, revision, _digest(files))


def _digest(files: list[Path]) -> str:
    lines = []
    for path in files:
        blob = path.resolve().name  # a hub cache calls a large file by its hash
        lines.append(f"{path.name} {blob if BLOB.fullmatch(blob) else sha256_of(path)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
