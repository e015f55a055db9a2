"""safetensors files, written atomically and read with errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from dpdmd.store.files import atomic_path


@contextmanager
def safetensors_errors(path: str | Path) -> Iterator[None]:
    """Turn the error of safetensors for a failed write, for example to a full disk, into an OSError naming `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically. Raises OSError when they cannot be written."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary, safetensors_errors(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. Raises ValueError naming the file if it is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file ({error})") from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a safetensors file, without its tensors. Raises ValueError like `read_tensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file ({error})") from None
