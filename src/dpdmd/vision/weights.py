"""Where a network's weights are, and which they are."""

from dataclasses import dataclass
from pathlib import Path

from dpdmd.store.digests import files_digest, sha256_of

FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


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
    return Weights(str(name), folder, revision, files_digest({path.name: path for path in files}))


def weights_digest(name: str | Path) -> str:
    """SHA-256 of a single file, or `Weights.sha256` of a folder or hub id. Raises ValueError like `find_weights`."""
    return sha256_of(name) if Path(name).is_file() else find_weights(name).sha256
