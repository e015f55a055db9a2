"""Checkpoints: complete or absent, verified when read, the newest few kept.

A checkpoint is a folder `step-000300` of safetensors and `state.json`, which is written last and holds the SHA-256 of
every other file. It is written under a temporary name and renamed. The tensors called "student" are in

    student.safetensors               all of them, when processes hold copies
    student/shard-00002-model-...     what the second process holds of them, when processes hold shares

and either is read by any number of processes, with copies or shares.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    TensorStorageMetadata,
)

from dpdmd.distributed.processes import on_all_processes, on_main_process, rank_and_world_size
from dpdmd.distributed.wrapping import own_part, own_rows
from dpdmd.models.student_file import STATE_FILE, CheckpointFile
from dpdmd.store.digests import sha256_of
from dpdmd.store.files import remove_folder, write_json
from dpdmd.store.state import read_state
from dpdmd.store.tensors import write_tensors

logger = logging.getLogger(__name__)

PREFIX = "step-"
PARTIAL = ".tmp"
# Of a file of shares: while one is written a process has its content twice in host memory.
BYTES_PER_FILE = 2**30
# Of what training stores, by the names in safetensors files.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8, "I64": torch.int64}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and its state: `step` student updates done in `seconds`, and further values."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def described(self, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The full shape and the dtype of the tensors stored as `name`. Raises ValueError when there are none."""
        path = self._file(name)
        if not path.is_file():
            stored = _reader(path.with_suffix("")).read_metadata().state_dict_metadata
            # Files of safetensors hold nothing but tensors.
            tensors = {key: cast("TensorStorageMetadata", tensor) for key, tensor in stored.items()}
            return {key: (tuple(tensor.size), tensor.properties.dtype) for key, tensor in tensors.items()}
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            return {key: (tuple(part.get_shape()), DTYPES[part.get_dtype()]) for key, part in slices.items()}

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The full shapes of the tensors stored as `name`. Raises ValueError when there are none."""
        return {key: shape for key, (shape, _) in self.described(name).items()}

    @torch.no_grad()
    def load(self, name: str, into: dict[str, Tensor]) -> None:
        """Fill tensors with what is stored as `name`; every process must call this, whatever it holds of them.

        Raises ValueError when names or shapes differ.
        """
        if self.shapes(name) != {key: tuple(tensor.shape) for key, tensor in into.items()}:
            raise ValueError(f"{self.folder}: the stored {name} belongs to another network")
        path = self._file(name)
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                for key, tensor in into.items():
                    if own_part(tensor).numel():
                        own_part(tensor).copy_(file.get_slice(key)[own_rows(tensor)])
            return
        with warnings.catch_warnings(), _plain_errors():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read shares
            dcp.load(into, storage_reader=_reader(path.with_suffix("")))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def save_checkpoint(
    folder: str | Path,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    *,
    keep: int,
    shares: bool = False,
    student: Callable[[Path], None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write `folder`/step-000300 with `tensors` by name and `state` (it has "step"); drop all but `keep`.

    Every process must call this. shares: each writes what it holds of the tensors; else the first writes all of them.
    student: writes, called in the first process, what describes the student into the folder, so that it can be sampled.
    group: of all processes, in which they wait for each other; by default the one in which they train.
    Raises OSError in all processes, with the older checkpoints untouched, when one cannot write.
    """
    folder = Path(folder)
    final = folder / f"{PREFIX}{state['step']:06d}"
    temporary = folder / f".{final.name}{PARTIAL}"

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        temporary.mkdir()
        if student is not None:
            student(temporary)

    def finish() -> None:
        write_json(temporary / STATE_FILE, {**state, "sha256": sums})
        remove_folder(final)
        os.replace(temporary, final)
        found = _folders(folder)
        newest = found.index(final)
        # Newer ones are damaged: this run resumed from before them.
        for path in found[:newest] + found[newest + keep :]:
            shutil.rmtree(path, ignore_errors=True)

    try:
        on_main_process(begin, group)
        if shares:
            written = on_all_processes(lambda: _write_shares(temporary, tensors, group), group)
            sums = {name: digest for mine in written for name, digest in mine.items()}
            sums |= on_main_process(lambda: _digests(temporary), group)
        else:
            sums = on_main_process(lambda: _write_all(temporary, tensors), group)
        on_main_process(finish, group)
    except OSError as error:
        raise OSError(
            f"could not write the checkpoint {final}: {error.strerror or error}. Older checkpoints are untouched; make "
            "room, then go on with --resume"
        ) from error
    finally:
        if rank_and_world_size()[0] == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write_all(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """One file per name; returns the files' hashes."""
    for name, values in tensors.items():
        write_tensors(folder / f"{name}.safetensors", values)
    return _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of the files directly in a folder."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _write_shares(
    folder: Path, tensors: dict[str, dict[str, Tensor]], group: dist.ProcessGroup | None
) -> dict[str, str]:
    """One folder per name, in it what this process holds; returns the hashes of this process's files."""
    rank, number = rank_and_world_size()
    for name, values in tensors.items():
        files, size = {}, 0
        for key, tensor in values.items():
            size += tensor.nbytes
            files[key] = 1 + size // (number * BYTES_PER_FILE)
        writer = HuggingFaceStorageWriter(str(folder / name), files, save_distributed=True)
        with _plain_errors():
            dcp.save(values, storage_writer=writer, process_group=group)
    mine = folder.glob(f"*/shard-{rank + 1:05d}-*.safetensors")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(mine)}


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise as an OSError what torch.distributed.checkpoint raises in all processes, which is not an `Exception`."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        kind = OSError if isinstance(cause, OSError) else RuntimeError
        raise kind(f"process {rank}: {cause}") from error


def _reader(folder: Path) -> HuggingFaceStorageReader:
    if not folder.is_dir():
        raise ValueError(f"{folder.parent} holds no {folder.name}")
    return HuggingFaceStorageReader(str(folder))


def latest_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of `folder`, None when there is none at all; damaged ones are reported.

    Every process must call this, and verifies its part of the files.
    Raises ValueError when all checkpoints are damaged.
    """
    folders = on_main_process(lambda: _folders(Path(folder)))
    for number, path in enumerate(folders, start=1):
        damages = [damage for damage in on_all_processes(lambda path=path: _damage(path)) if damage is not None]
        if not damages:
            return Checkpoint(path, read_state(path / STATE_FILE, CheckpointFile).model_dump())
        if number == len(folders):
            every = f"every checkpoint in {folder} is damaged, {path.name} as well"
            what = f"the only checkpoint, {path}, is damaged" if number == 1 else every
            raise ValueError(f"{what} ({damages[0]}); start again with --overwrite")
        before = folders[number].name
        logger.warning("checkpoint %s is damaged (%s); trying the one before, %s", path, damages[0], before)
    return None


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)


def remove_partial(folder: Path) -> None:
    """Remove what a process left when it was killed while writing."""
    for path in folder.glob(f".{PREFIX}*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with this process's part of a checkpoint, None when every file is as it was written."""
    try:
        state = read_state(folder / STATE_FILE, CheckpointFile)
    except (ValueError, OSError):
        state = None
    if state is None or state.step != int(folder.name.removeprefix(PREFIX)):
        return f"{STATE_FILE} is missing or broken"
    sums = list(state.sha256.items())
    rank, number = rank_and_world_size()
    for name, expected in sums[rank::number]:
        path = folder / name
        try:
            if sha256_of(path) != expected:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None
