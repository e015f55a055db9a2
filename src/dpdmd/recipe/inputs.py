"""What a recipe reads: names looked up next to the recipe file first, and written as absolute paths where they exist.

`output.folder` and `data.cache` are written, not read: they belong to the working directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpdmd.recipe.schema import INPUTS, Recipe
from dpdmd.store.names import expanded

# Values of these keys that name something other than a file, even where a file of that name exists.
RESERVED = {"scenes", "scenes_eps", "generic", "auto", "teacher"}


def look_up_inputs(data: dict[str, Any], folder: Path) -> None:
    """Replace, in the parsed TOML of a file in `folder`, every input that exists next to the file by its path."""

    def found(name: Any) -> Any:
        return _absolute(name, folder) if isinstance(name, str) else name

    for key in INPUTS:
        *tables, last = key.split(".")
        table: Any = data
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            continue
        value = table[last]
        if isinstance(value, list):
            table[last] = [
                {**entry, "source": found(entry.get("source"))} if isinstance(entry, dict) else found(entry)
                for entry in value
            ]
        else:
            table[last] = found(value)


def with_absolute_inputs(recipe: Recipe) -> Recipe:
    """The recipe with every input that is a file or folder as an absolute path, from the working directory."""

    def replaced(section: Any, parts: Sequence[str]) -> Any:
        name, *rest = parts
        value = getattr(section, name)
        if rest:
            value = replaced(value, rest)
        elif isinstance(value, tuple):  # sources of prompts
            value = tuple(entry.model_copy(update={"source": _absolute(entry.source)}) for entry in value)
        elif value is not None:
            value = _absolute(value)
        return section.model_copy(update={name: value})

    for key in INPUTS:
        recipe = replaced(recipe, key.split("."))
    return recipe


def _absolute(name: str, folder: Path | None = None) -> str:
    """`name` as an absolute path if it exists in `folder` (default: the working directory), otherwise as it is."""
    if name in RESERVED or not name:
        return name
    path = Path(folder or Path.cwd(), expanded(name))
    if path.exists():
        return str(path.absolute())
    run, at, step = str(path).rpartition("@")  # RUN@STEP
    return f"{Path(run).absolute()}{at}{step}" if step.isdigit() and Path(run).is_dir() else name
