"""Files and folders as options name them."""

from pathlib import Path

import typer

from dpdmd.store.names import expanded


def place(name: str | Path) -> Path:
    """The path of a name, with ~ expanded: a shell leaves it as it is in --out=~/images.

    Raises BadParameter for an empty name, which is mostly a variable that is not set and would mean the working
    directory.
    """
    if not str(name).strip():
        raise typer.BadParameter("the name is empty; name a file or folder ('.' is the working directory)")
    return Path(expanded(name))
