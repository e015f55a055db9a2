"""What a recipe reads: names looked up next to the recipe file first, and written as absolute paths where they exist.

`output.folder` and `data.cache` are written, not read: they belong to the working directory.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpdmd.recipe.schema import INPUTS, Recipe
from dpdmd.store.names import did_you_mean, expanded

SOURCES = {"data.prompts": "source", "model.loras": "path"}  # lists of tables, and what names a file in each
AT_STEP = re.compile(r"@\d+$")  # of RUN@STEP
# Values that name something other than a file, even where a file of that name exists.
TEACHERS = {"scenes", "scenes_eps", "drawings"}
RESERVED = {
    "model.teacher": TEACHERS,
    "model.loras": set(),
    "student.start": TEACHERS,
    "objective.perceptual.backbone": {"scenes"},
    "objective.adversarial.real": {"teacher"},
    "data.prompts": {"scenes", "drawings", "generic"},
    "validation.features": {"scenes", "auto"},
}


def look_up_inputs(data: dict[str, Any], folder: Path) -> None:
    """Replace, in the parsed TOML of a file in `folder`, every input that exists next to the file by its path."""

    def found(key: str, name: Any) -> Any:
        return _absolute(key, name, folder) if isinstance(name, str) else name

    for key in INPUTS:
        *tables, last = key.split(".")
        table: Any = data
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            continue
        value = table[last]
        if isinstance(value, list):
            name = SOURCES[key]
            table[last] = [
                {**entry, name: found(key, entry.get(name))} if isinstance(entry, dict) else found(key, entry)
                for entry in value
            ]
        else:
            table[last] = found(key, value)


def with_absolute_inputs(recipe: Recipe) -> Recipe:
    """The recipe with every input that is a file or folder as an absolute path, from the working directory."""

    def replaced(section: Any, key: str, parts: Sequence[str]) -> Any:
        name, *rest = parts
        value = getattr(section, name)
        if rest:
            value = replaced(value, key, rest)
        elif isinstance(value, tuple):
            place = SOURCES[key]
            value = tuple(entry.model_copy(update={place: _absolute(key, getattr(entry, place))}) for entry in value)
        elif value is not None:
            value = _absolute(key, value)
        return section.model_copy(update={name: value})

    for key in INPUTS:
        recipe = replaced(recipe, key, key.split("."))
    return recipe


def require_inputs(recipe: Recipe) -> None:
    """Raises ValueError for absolute paths of what a recipe reads that are not there, as in a run that was moved."""
    missing = []
    for key in INPUTS:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        for name in [getattr(entry, SOURCES[key]) for entry in value] if isinstance(value, tuple) else [value]:
            if isinstance(name, str) and Path(name).is_absolute() and not Path(AT_STEP.sub("", name)).exists():
                hint = f"{did_you_mean(name)}. If it was moved, name its new place: --set {key}=PLACE"
                missing.append(f"{key}: there is no {name}{hint}")
    if missing:
        raise ValueError("\n".join(missing))


def _absolute(key: str, name: str, folder: Path | None = None) -> str:
    """`name` as an absolute path if it exists in `folder` (default: the working directory), otherwise as it is."""
    if name in RESERVED[key] or not name:
        return name
    path = Path(folder or Path.cwd(), expanded(name))
    if os.path.exists(path):  # not Path.exists, which raises for names that no file can have
        return str(path.absolute())
    run, at, step = str(path).rpartition("@")  # RUN@STEP
    return f"{Path(run).absolute()}{at}{step}" if step.isdigit() and os.path.isdir(run) else name
