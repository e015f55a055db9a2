"""Recipes as TOML files: read strictly, overridden, written, described; mistakes in words."""

import difflib
import json
import logging
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dpdmd.recipe.schema import Recipe
from dpdmd.store.names import did_you_mean, expanded

logger = logging.getLogger(__name__)


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


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, or the shipped recipe of that name, with `section.key=value` overrides on top.

    A value is TOML ("1e-4", "[0.3, 0.9]", "true"); what is not TOML is taken as text; an empty value restores the
    default. Raises ValueError listing every problem at once: key, what came, what is allowed, the nearest name.
    """
    path = find_recipe(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    problems = [problem for text in overrides if (problem := _override(data, text))]
    problems += _take_out_old_keys(data, path)
    try:
        # Strict JSON takes lists for tuples and whole numbers for floats, but no "4" or true for a number.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems += [_problem(details) for details in error.errors()]
    if problems:
        raise ValueError("\n  ".join([f"{path} cannot be used, {_count(len(problems))}:", *problems]))
    return recipe


def _take_out_old_keys(data: dict, path: Path) -> list[str]:
    """Take keys of earlier versions out of `data`; returns what is wrong with those that are not at their default.

    Those that are change nothing: the recipe is used, after one warning that names them.
    """
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
    if without_effect:
        _warn_once(
            f"{path} names keys that dpdmd 0.2.0 no longer has, at their old defaults, which changes nothing: "
            f"{', '.join(without_effect)}"
        )
    return problems


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
    folder = files("dpdmd") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir()) if folder.is_dir() else []


def find_recipe(name: str | Path) -> Path:
    """The file `name`, or the shipped recipe called so. Raises ValueError with the nearest names."""
    path, shipped = Path(expanded(name)), shipped_recipes()
    if path.is_file():
        return path
    if str(name) in shipped:
        return Path(str(files("dpdmd") / "recipes" / f"{name}.toml"))
    nearest = difflib.get_close_matches(str(name), shipped, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else did_you_mean(path)
    raise ValueError(
        f"there is no recipe file {path} and no shipped recipe of that name ({', '.join(shipped) or 'none'}){hint}"
    )


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
        values[key] = value
    return values


def _override(data: dict, text: str) -> str | None:
    """Put one override into `data`; what is wrong with it, or None."""
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
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _problem(details: ErrorDetails) -> str:
    """One validation error in words."""
    parts = [str(part) for part in details["loc"]]
    key, kind = ".".join(parts), details["type"]
    fields = dict(recipe_keys())
    if kind == "extra_forbidden":
        return _unknown_key(parts, details["input"], list(fields))
    field = fields.get(key) or fields.get(".".join(parts[:-1]))
    meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
    if kind == "missing":
        inside = [name for name in fields if name.startswith(f"{key}.") and fields[name].is_required()]
        return f"{', '.join(inside) or key} is required{meaning}"
    rule = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if kind == "value_error" and isinstance(details["input"], dict):
        return f"{key}: {rule}"
    nearest = ""
    if kind == "literal_error" and field is not None:
        names = difflib.get_close_matches(str(details["input"]), map(str, get_args(field.annotation)), n=1)
        nearest = f"; did you mean {names[0]!r}?" if names else ""
    return f"{key} {rule}, got {details['input']!r}{nearest}{meaning}"


def _unknown_key(parts: list[str], value: Any, known: list[str]) -> str:
    *table, name = parts
    prefix = "".join(f"{part}." for part in table)
    allowed = list(dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)))
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    close = [prefix + match for match in difflib.get_close_matches(name, allowed, n=1)]
    tails = {key.rpartition(".")[2]: key for key in known}
    far = [tails[match] for match in difflib.get_close_matches(name, tails, n=1)]
    nearest = next(iter(elsewhere + close + far), None)
    where = f"[{'.'.join(table)}] has" if table else "sections are"
    hint = f"; did you mean {nearest}?" if nearest else ";"
    came = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{'.'.join(parts)} is not a key of a recipe{came}{hint} {where}: {', '.join(allowed)}"


def _count(number: int) -> str:
    return "one problem" if number == 1 else f"{number} problems"
