"""Temporary files and folders: how they are named, and removing those that a killed process has left behind."""

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

STALE_SECONDS = 3600
NAME_LENGTH = 40  # of a name that is kept, so that the whole stays within what file systems allow
# .NAME.HOST-PROCESS-RANDOM.tmp.SUFFIX; versions up to 0.2.0 named neither host nor process.
TEMPORARY = re.compile(
    r"\.(?P<name>.*)\.(?:(?P<host>[0-9a-f]{6})-(?P<process>\d+)-)?(?P<random>[0-9a-zA-Z]+)\.tmp(?:\..*)?", re.DOTALL
)


def temporary_name(name: str, suffix: str = "") -> str:
    """A new name, hidden and with the same suffix, that says which process writes under it."""
    return f".{name[:NAME_LENGTH]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"


def remove_leftovers(folder: Path, *, of: str | None = None, alone: bool = False, deep: bool = False) -> None:
    """Remove temporary files and folders in `folder` whose process no longer runs.

    Of a process of another machine, or of an older version, nobody can tell: what was not touched for an hour is
    removed as well. of: only those of that name. alone: no process of an older version works in the folder.
    deep: in its sub-folders as well. What cannot be removed stays.
    """
    name = None if of is None else of[:NAME_LENGTH]
    for path in list(folder.rglob(".*.tmp*") if deep else folder.glob(".*.tmp*")):
        found = TEMPORARY.fullmatch(path.name)
        if found is None or name not in (None, found["name"]) or _may_be_in_use(path, found, alone=alone):
            continue
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _may_be_in_use(path: Path, found: re.Match[str], *, alone: bool) -> bool:
    if alone if found["host"] is None else found["host"] == _host() and not _runs(int(found["process"])):
        return False
    try:
        return time.time() - path.lstat().st_mtime <= STALE_SECONDS
    except OSError:
        return True  # its writer has renamed it


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
