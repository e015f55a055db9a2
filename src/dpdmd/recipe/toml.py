"""Recipes as TOML files: read strictly, overridden, written, described."""

import difflib
import json
import logging
import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dpdmd.recipe.bounds import UPDATES, WITHOUT_END
from dpdmd.recipe.inputs import SOURCES, look_up_inputs, with_absolute_inputs
from dpdmd.recipe.mistakes import in_words, refusal, short
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import read_text
from dpdmd.store.names import did_you_mean, expanded

logger = logging.getLogger(__name__)

MOST_BYTES = 2**20  # of a recipe
RUN_RECIPE, RUN_PROVENANCE = "recipe.toml", "provenance.json"  # files of a run folder

# Keys of earlier versions: their default there, at which a recipe may still name them, and what became of them.
REMOVED: dict[str, Any] = {
    "objective.guidance_weight": 1.0,
    "objective.guidance_tau": None,
    "objective.guidance_interval": [0.0, 1.0],
    "objective.anchor.depth": 1,
    "objective.anchor.time": None,
    "objective.anchor.variation_weight": 0.0,
    "objective.adversarial.start": 0,
    "objective.adversarial.ramp": 0,
    "objective.adversarial.loss": "non_saturating",
    "objective.adversarial.r1_weight": 0.0,
    "objective.adversarial.blocks": None,
    "train.time_jitter": 0.0,
    "train.fake_head_start": 0,
}
MOVED = {"train.samples_per_prompt": "data.samples_per_prompt"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, the shipped recipe of that name or the recipe of a run folder, with overrides on top.

    An override reads `section.key=value`. A value is TOML ("1e-4", "[0.3, 0.9]", "true"); what is not TOML is taken as
    text; an empty value restores the default. What a file of your own reads (teacher, prompts, ...) is looked for next
    to that file, then in the working directory; a run folder is its own output.folder, wherever it was moved.
    Raises ValueError listing every problem at once: key, what came, what is allowed, the nearest name.
    """
    path = find_recipe(path)
    try:
        text = read_text(path, most=MOST_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if path.parent != _shipped_folder():
        look_up_inputs(data, path.parent)
    if path.name == RUN_RECIPE and is_run(path.parent):
        data["output"] = {**data.get("output", {}), "folder": str(path.parent)}
        model = data.get("model")
        if isinstance(model, dict) and model.get("sizes") == []:  # so runs began whose recipe had one size
            del model["sizes"]
    return recipe_from(data, overrides, where=str(path))


def recipe_from(data: dict[str, Any], overrides: Sequence[str] = (), *, where: str) -> Recipe:
    """The recipe of parsed TOML with overrides on top; see `load_recipe`. where: what messages call the TOML.

    A problem that the TOML does not have without its overrides is said to be theirs.
    """
    try:
        text = json.dumps(data, default=str)
        changed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(refusal(where, [_unreadable(error)])) from None
    mistaken = [problem for one in overrides if (problem := override(changed, one))]
    recipe, problems, without_effect = _read(changed)
    overridden = {one.partition("=")[0].strip() for one in overrides}
    _warn_of([key for key in without_effect if key not in overridden], where)
    _warn_of([key for key in without_effect if key in overridden], "an override")
    if recipe is not None and not mistaken:
        return with_absolute_inputs(recipe)
    own = _read(json.loads(text))[1] if overrides else problems
    found = [problem for problem in problems if problem in own]
    theirs = mistaken + [problem for problem in problems if problem not in own]
    blamed = [(where, found), (_named(overrides, theirs), theirs)]
    raise ValueError("\n".join(refusal(what, of_it) for what, of_it in blamed if of_it))


def _read(data: dict[str, Any]) -> tuple[Recipe | None, list[str], list[str]]:
    """The recipe of parsed TOML, which is changed, or None with what is wrong; and old keys that have no effect."""
    problems, without_effect = _take_out_old_keys(data)
    _make_lists(data)
    train = data.get("train")
    if isinstance(train, dict) and train.get("num_updates") == WITHOUT_END and train.get("max_seconds") is not None:
        train["num_updates"] = UPDATES
    recipe = None
    try:
        # Strict JSON takes lists for tuples and whole numbers for floats, but no "4" or true for a number.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems += in_words(error.errors(), dict(recipe_keys()))
    except (ValueError, RecursionError) as error:
        problems.append(_unreadable(error))
    return (None if problems else recipe), problems, without_effect


def _unreadable(error: Exception) -> str:
    return f"a value of it cannot be read ({error})"


def _named(overrides: Sequence[str], problems: list[str]) -> str:
    """The overrides that the problems are about, as they were given; all of them if there is none such."""
    # A problem is about the key in it, or about all keys of the section before its colon.
    sections = tuple(f"{problem.partition(':')[0]}." for problem in problems)
    keys = {one: one.partition("=")[0].strip() or one for one in overrides}
    about = [one for one, key in keys.items() if key.startswith(sections) or any(key in text for text in problems)]
    named = about or list(keys)
    return f"the override{'s' if len(named) > 1 else ''} {', '.join(map(short, named))}"


def changed_recipe(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """The recipe with overrides on top. Raises ValueError for settings that exclude each other."""
    return recipe_from(recipe.model_dump(exclude_none=True), overrides, where="the recipe")


def _make_lists(data: dict[str, Any]) -> None:
    """Take a single value where a list is meant as a list of one, and a name among tables as the table of that name."""
    for key, field in recipe_keys():
        *tables, name = key.split(".")
        table: Any = data
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or name not in table:
            continue
        value = table[name]
        if key in SOURCES:
            value = [value] if isinstance(value, str) and key != "data.prompts" else value
            if isinstance(value, list):
                table[name] = [{SOURCES[key]: entry} if isinstance(entry, str) else entry for entry in value]
        elif key == "model.sizes" and isinstance(value, list):
            table[name] = [_as_size(entry) for entry in value]
        elif isinstance(value, str) and _is_list(field):
            table[name] = [value]


def _as_size(entry: Any) -> Any:
    """[height, width] as a table; anything else as it is."""
    return {"height": entry[0], "width": entry[1]} if isinstance(entry, list) and len(entry) == 2 else entry


def _is_list(field: FieldInfo) -> bool:
    """Whether a key holds any number of values."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return any(get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis for kind in kinds)


def _take_out_old_keys(data: dict) -> tuple[list[str], list[str]]:
    """Take keys of earlier versions out of `data`; returns what is wrong with those that are not at their default, and
    the names of those that are, which change nothing."""
    problems, without_effect = [], []
    for key, default in REMOVED.items():
        found = _pop(data, key)
        if found is _ABSENT:
            continue
        if found != default:
            problems.append(
                f"{key} was removed in dpdmd 0.2.0 (it had no measured benefit, see docs/negative-results.md); "
                f"delete the line, got {found!r}"
            )
        else:
            without_effect.append(key)
    for key, now in MOVED.items():
        found = _pop(data, key)
        if found is _ABSENT:
            continue
        if found != 1:
            problems.append(f"{key} is called {now} since dpdmd 0.2.0; rename it, got {found!r}")
        else:
            without_effect.append(key)
    return problems, without_effect


def _warn_of(old_keys: list[str], where: str) -> None:
    if old_keys:
        _warn_once(
            f"{where} names keys that dpdmd 0.2.0 no longer has, at their old defaults, which changes nothing: "
            f"{', '.join(old_keys)}"
        )


@cache
def _warn_once(message: str) -> None:
    """Log a warning, once per process: a run reads its recipe several times."""
    logger.warning(message)


_ABSENT = object()


def _pop(data: dict, key: str) -> Any:
    *tables, name = key.split(".")
    for table in tables:
        data = data.get(table, {}) if isinstance(data, dict) else {}
    return data.pop(name, _ABSENT) if isinstance(data, dict) else _ABSENT


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = _shipped_folder()
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir()) if folder.is_dir() else []


def _shipped_folder() -> Path:
    return Path(str(files("dpdmd") / "recipes"))


def summary(name: str) -> str:
    """What a shipped recipe is for: the first sentence of the comment at its head."""
    comment = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return re.split(r"(?<=\.)\s", " ".join(comment), maxsplit=1)[0]


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run: the recipe that training has written, and where it was trained."""
    return all((Path(folder) / name).is_file() for name in (RUN_RECIPE, RUN_PROVENANCE))


def find_recipe(name: str | Path) -> Path:
    """The file `name`, the shipped recipe called so, or the recipe of the run in that folder.

    Raises ValueError with the nearest names.
    """
    if "\0" in str(name) or len(str(name)) > 4096:
        raise ValueError(f"{short(str(name))} is no name that a file can have")
    path, shipped = Path(expanded(name)), shipped_recipes()
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path
    if is_run(path):
        return path / RUN_RECIPE
    if str(name) in shipped:
        return _shipped_folder() / f"{name}.toml"
    if path.is_dir():
        raise ValueError(f"{path} is a folder without a run; name a recipe, or the output.folder of a run")
    if len(path.parts) > 1:  # a place, and no name of a shipped recipe
        raise ValueError(f"there is no recipe file {path} and no run in a folder of that name{did_you_mean(path)}")
    nearest = difflib.get_close_matches(str(name), shipped, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else did_you_mean(path)
    known = ", ".join(shipped) or "none"
    raise ValueError(f"there is no recipe file {path}, no run and no shipped recipe of that name ({known}){hint}")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that loads back equal; keys without a value (None) are left out."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def describe_recipe() -> str:
    """Every key with its default and its meaning, as a TOML template."""
    lines, section = [], None
    for key, field in recipe_keys():
        table, _, name = key.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
            section = table
        if field.is_required():
            setting = f"{name} = ..."
        else:
            setting = f"# {name} =" if field.default is None else tomli_w.dumps({name: field.default}).strip()
        lines.append(f"{setting:<32} # {'Required. ' if field.is_required() else ''}{field.description}")
    return "\n".join(lines)


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, its field) of every key of a recipe, in order."""
    tables = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((field.annotation, f"{prefix}{name}."))
        else:
            yield f"{prefix}{name}", field
    for table in tables:
        yield from recipe_keys(*table)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of a recipe."""
    values = {}
    for key, _ in recipe_keys(type(recipe)):
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        if (key in SOURCES or key == "model.sizes") and isinstance(value, tuple):
            value = tuple(entry.model_dump() for entry in value)
        values[key] = value
    return values


def override(data: dict, text: str) -> str | None:
    """Put one override, `section.key=value`, into `data`; returns what is wrong with it, or None."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) < 2 or not all(parts):
        return f"{text!r}: an override reads section.key=value, such as train.learning_rate=2e-4"
    table = data
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"{key}: {part} is a value, not a section"
    if value.strip():
        table[parts[-1]] = _parse(value.strip())
    else:
        table.pop(parts[-1], None)
    return None


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text
