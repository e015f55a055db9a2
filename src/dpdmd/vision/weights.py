"""Finding the weights of a network, and saying which they are."""

from dataclasses import dataclass
from pathlib import Path

from dpdmd.store.cache import hash_memo
from dpdmd.store.digests import files_digest, sha256_of
from dpdmd.store.messages import first_line
from dpdmd.store.names import local_or_hub_id

FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


@dataclass(frozen=True)
class Weights:
    """The folder of a network.

    name: as it was asked for. revision: the hub's commit; None for a local folder. sha256: over names and contents of
    all files that match FILES.
    """

    name: str
    folder: Path
    revision: str | None
    sha256: str

    def facts(self) -> dict[str, str | None]:
        """What provenance records."""
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}


def find_weights(name: str | Path, *, local_files_only: bool = False) -> Weights:
    """The folder `name`, or the snapshot of the hub id `name`, downloaded if it is not in the cache.

    Raises ValueError naming it if there is no such folder or id, or no safetensors file in it.
    """
    name = local_or_hub_id(name)
    folder, revision = Path(name), None
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError

        try:
            folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=local_files_only))
        except (OSError, ValueError, HTTPError) as error:
            raise ValueError(
                f"{name!r} is neither a folder nor a hub id that can be downloaded ({first_line(error)})"
            ) from None
        revision = folder.name
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{name!r} has no .safetensors file; pickles (.pt, .bin, .pth) are not read")
    return Weights(name, folder, revision, files_digest({path.name: path for path in files}, memo=hash_memo()))


def weights_digest(name: str | Path) -> str:
    """SHA-256 of a single file, or `Weights.sha256` of a folder or hub id. Raises ValueError like `find_weights`."""
    name = local_or_hub_id(name)
    return sha256_of(name) if Path(name).is_file() else find_weights(name).sha256
