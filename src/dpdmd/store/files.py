"""Atomic writing: to a temporary name in the same folder, then renamed, so that no reader sees half a file."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, ENXIO
from pathlib import Path
from typing import Any

from dpdmd.store.leftovers import remove_leftovers, temporary_name

MOST_BYTES = 2**30  # of a text file: a manifest of a million images has a fifth of it
# Names of what a process has open: a file behind them is appended to, as by a shell, and not replaced.
OPEN_FILES = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file to write to. On success it becomes `path`, on failure it is removed.

    It lies next to `path` and is renamed, so that no reader sees half of it. A link is followed and stays. Into a
    device or pipe the content is copied instead. Raises OSError for a pipe that nobody reads.
    """
    path = Path(path)
    if is_stream(path):
        with _copied_into(path) as temporary:
            yield temporary
        return
    path = _behind_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.stem, path.suffix))
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors makes its files readable by their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder next to `path` to fill. It is renamed to `path` on success and removed on failure.

    `path` must not exist. What a killed process began for the same folder is removed. All files in it get the modes
    that new ones have.
    """
    path = Path(path)
    remove_leftovers(path.parent, of=path.name)
    temporary = path.with_name(temporary_name(path.name))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _give_usual_modes(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _give_usual_modes(folder: Path) -> None:
    """Give all files and folders in `folder` the modes that new ones have, whatever copied or wrote them.

    A linked file keeps its mode, which is also that of the original.
    """
    probe = folder / ".mode"
    probe.touch()
    file_mode, folder_mode = probe.stat().st_mode, folder.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(folder_mode)
        elif path.stat().st_nlink == 1:
            path.chmod(file_mode)


def is_stream(path: str | Path) -> bool:
    """Whether writing to `path` means writing into what is there: a device, a pipe, or a file that is open."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or os.path.abspath(path).startswith(OPEN_FILES)


@contextmanager
def _copied_into(stream: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, f"content{stream.suffix}")
        temporary.touch()
        yield temporary
        with temporary.open("rb") as source, _opened(stream) as target:
            try:
                shutil.copyfileobj(source, target)
            except OSError as error:
                raise OSError(error.errno, f"could not write into {stream}: {error.strerror}") from None


def _opened(stream: Path) -> Any:
    """A device or pipe, open for writing. Without O_NONBLOCK the call would wait for somebody to read a pipe."""
    try:
        number = os.open(stream, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        reason = "nobody reads this pipe" if error.errno == ENXIO else error.strerror
        raise OSError(error.errno, f"cannot write into {stream}: {reason}") from None
    os.set_blocking(number, True)
    return open(number, "wb", buffering=0)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_folder(path: str | Path, what: str = "") -> Path:
    """Make a folder unless it exists. Raises ValueError like `require_place`."""
    require_place(path, what)
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def require_place(path: str | Path, what: str = "") -> None:
    """Raises ValueError, naming `what`, where a file, a device or a link to nothing is in the place of a folder."""
    path, named = Path(path), f"{what} " if what else ""
    for place in (path, *path.parents):
        if os.path.lexists(place) and not place.is_dir():
            kind = "a link to a folder that does not exist" if place.is_symlink() and not place.exists() else "a file"
            raise ValueError(f"{named}{path} must be a folder, and {place} is {kind}; choose another folder")


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, or a link to one, whose content stays. What is not there is no error."""
    if path.is_symlink():
        path.unlink()
    else:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def require_writable(path: str | Path, what: str = "") -> Path:
    """Raises OSError, naming `what`, if the file `path` cannot be written; returns the nearest folder that exists.

    It tries: a byte is written to a temporary file in that folder. Permissions alone do not tell, for root, on a
    read-only file system or on a full disk. Nothing is left behind.
    """
    path = Path(path)
    named = f"cannot write {what + ' ' if what else ''}{path}"
    absolute = _behind_links(path.absolute())
    place = next((parent for parent in absolute.parents if parent.exists()), absolute)  # "/" has no parents
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise OSError(f"{named}: {os.strerror(EACCES)}")
        return place
    if path.is_dir():
        raise IsADirectoryError(f"{named}: it is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        raise type(error)(
            f"{named}: no file can be made in {place} ({error.strerror}); choose another place"
        ) from error
    return place


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. What a killed process began under the same name is removed."""
    path = Path(path)
    remove_leftovers(path.parent, of=path.stem)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def require_ordinary_file(path: str | Path, *, most: int = MOST_BYTES) -> None:
    """Raises ValueError for a folder, a device or a pipe, which may have no end, and for more than `most` bytes.

    Raises OSError when there is no such file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or pipe, which may have no end"
        raise ValueError(f"{path} is no ordinary file but {kind}; name a file")
    if found.st_size > most:
        raise ValueError(f"{path} has {found.st_size:,} bytes; more than {most:,} are not read as text")


def read_text(path: str | Path, *, most: int = MOST_BYTES, errors: str = "strict") -> str:
    """Read UTF-8 text. Raises ValueError naming the file if it is missing, no file, longer than `most`, or not UTF-8.

    A byte-order mark, which some editors write, is skipped. errors: as for `bytes.decode`.
    """
    try:
        require_ordinary_file(path, most=most)
        return Path(path).read_text(encoding="utf-8-sig", errors=errors)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8 text ({error})") from None


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises ValueError naming the file if it is missing or broken."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
