"""Names that a user gives: of a file or folder, in which ~ is the home folder, or of something on the hub."""

import difflib
import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

RUNS = "runs"  # where recipes put their runs


def expanded(name: str | Path) -> str:
    """`name` with a leading ~ replaced by the home folder, otherwise as it is."""
    return os.path.expanduser(name)


def local_or_hub_id(name: str | Path) -> str:
    """`name` with ~ expanded, for what may be a file, a folder or a hub id.

    Raises ValueError for an empty name and, with the nearest name that exists, for a path that does not: it is not
    looked up on the hub, which would take half a minute without a network. A path starts with ".", "/" or "~", has more
    than one "/" or ends with one, ends with ".safetensors", or starts with "runs/" or with a folder that exists.
    """
    if not str(name).strip():
        raise ValueError("a name is empty; name a folder, a hub id or what is built in")
    name, given = expanded(name), str(name)
    if Path(name).exists():
        return name
    owner = given.partition("/")[0]
    if given.startswith((".", "/", "~")) or given.endswith(("/", ".safetensors")) or given.count("/") > 1:
        raise ValueError(f"{given} does not exist{did_you_mean(name)}")
    if owner == RUNS and not Path(owner).exists():
        raise ValueError(f"{given} does not exist: the working directory has no folder {RUNS}")
    if owner != given and Path(owner).is_dir():
        raise ValueError(
            f"{given} does not exist{did_you_mean(name)} (not looked up on the hub, since {owner}/ is a folder here)"
        )
    if owner != given:
        _stay_offline_without_hub()
    return name


@cache
def _stay_offline_without_hub() -> None:
    """Take hub ids from the local cache alone where the hub's address is not even known: asking it takes half a minute.

    A proxy may know the address where this machine does not.
    """
    from huggingface_hub import constants

    if getproxies():
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def did_you_mean(missing: str | Path) -> str:
    """ "; did you mean PATH?" with the existing path nearest to one that does not exist, "" if none is near."""
    nearest = _nearest(Path(missing))
    return "" if nearest is None else f"; did you mean {nearest}?"


def _nearest(path: Path) -> Path | None:
    """`path` with each part that does not exist replaced by the nearest name in its folder, as far as there is one."""
    absent = next((place for place in (*reversed(path.parents), path) if not place.exists()), None)
    if absent is None or not absent.parent.is_dir():
        return None
    matches = difflib.get_close_matches(absent.name, os.listdir(absent.parent), n=1)
    if not matches:
        return None
    found = absent.with_name(matches[0])
    whole = found / path.relative_to(absent)
    return whole if whole.exists() else _nearest(whole) or found
