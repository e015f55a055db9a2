"""Mistakes in a recipe in words: the key, what it takes, what came, and the nearest name."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dpdmd.recipe.bounds import reason
from dpdmd.recipe.model_keys import ImageSize, LoraSource
from dpdmd.recipe.schema import PromptSource
from dpdmd.recipe.section import Section

LONGEST_KEY, LONGEST_PATH = 100, 10  # of what messages repeat and compare
# Lists of tables: the table of one entry, and how an entry may be written.
ENTRIES: dict[str, tuple[type[Section], str]] = {
    "model.loras": (LoraSource, 'a name, or {path = "style.safetensors", weight = 0.8}'),
    "model.sizes": (ImageSize, "[height, width] in pixels, such as [1024, 1024]"),
    "data.prompts": (PromptSource, 'a name, or {source = "mine.txt", weight = 3}'),
}

Place = tuple[int | str, ...]  # of a value: names of tables and keys, and numbers of entries in lists


def refusal(what: str, problems: list[str]) -> str:
    """The message that `what` cannot be used, with every problem on a line of its own."""
    number = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{what} cannot be used, {number}:", *problems])


def in_words(errors: Iterable[ErrorDetails], fields: Mapping[str, FieldInfo]) -> list[str]:
    """What pydantic found wrong, one text for each value. fields: {dotted key: its field} of a recipe.

    Of a value that may be of several kinds pydantic reports each kind that it is not. They become one problem; where a
    kind fits but for an entry in it, that of the entry alone.
    """
    by_place: dict[Place, list[ErrorDetails]] = {}
    for details in errors:
        by_place.setdefault(_place(details["loc"], fields), []).append(details)
    innermost = [
        place for place in by_place if not any(place == other[: len(place)] != other for other in by_place if place)
    ]
    return list(dict.fromkeys(_problem(place, by_place[place], fields) for place in innermost))


def _place(loc: Place, fields: Mapping[str, FieldInfo]) -> Place:
    """A place without pydantic's name for one of the kinds that a key may have, which follows that key."""
    for end in range(1, len(loc)):
        field = fields.get(".".join(map(str, loc[:end])))
        if field is not None and len(_kinds(field.annotation)) > 1:
            return loc[:end] + loc[end + 1 :]
    return loc


def _kinds(annotation: Any) -> list[Any]:
    """The types that a union offers but None; of any other type itself."""
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [kind for kind in get_args(annotation) if kind is not type(None)]


def _problem(place: Place, errors: list[ErrorDetails], fields: Mapping[str, FieldInfo]) -> str:
    details = errors[0]
    parts = [str(part) for part in place]
    key, kind, value = ".".join(parts), details["type"], details["input"]
    entry = _entry(place)
    if kind == "extra_forbidden":
        return _unknown_key(parts, value, list(fields), entry)
    field = _field(place, fields)
    meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
    if kind == "missing":
        inside = [name for name in fields if name.startswith(f"{key}.") and fields[name].is_required()]
        return f"{', '.join(inside) or key} is required{meaning}"
    if kind == "value_error" and isinstance(value, dict):
        rule = _rule(details)
        return f"{key}: {rule}" if key else rule  # no key: the rule is about keys of several sections, and names them
    if kind == "model_type" and entry is not None:
        return f"{key} should be {ENTRIES[_table(place)][1]}, got {short(value)}"
    why = next((f"; {text}" for text in map(_reason, errors) if text), "")
    nearest = ""
    if field is not None and any(error["type"] == "literal_error" for error in errors):
        names = difflib.get_close_matches(str(value)[:LONGEST_KEY], map(str, _choices(field.annotation)), n=1)
        nearest = f"; did you mean {names[0]!r}?" if names else ""
    rule, *others = dict.fromkeys(map(_rule, errors))
    rules = ", or ".join([rule, *(other.removeprefix("should be ") for other in others)])
    return f"{key} {rules}, got {short(value)}{nearest}{why}{meaning}"


def _table(place: Place) -> str:
    """The key of the list that an entry, or a key of an entry, is in."""
    return ".".join(str(part) for part in place[: next(i for i, part in enumerate(place) if isinstance(part, int))])


def _entry(place: Place) -> type[Section] | None:
    """The table of the entry that a place is in; None for a place in no list of tables."""
    if not any(isinstance(part, int) for part in place):
        return None
    return ENTRIES.get(_table(place), (None, ""))[0]


def _field(place: Place, fields: Mapping[str, FieldInfo]) -> FieldInfo | None:
    """The field of a key, of the list that a value is in, or of a key of an entry."""
    entry, last = _entry(place), str(place[-1]) if place else ""
    if entry is not None:
        return entry.model_fields.get(last) or fields.get(_table(place))
    key = ".".join(map(str, place))
    return fields.get(key) or fields.get(key.rpartition(".")[0])


def _rule(details: ErrorDetails) -> str:
    """What a value should be, in the words of TOML."""
    kind, limits = details["type"], details.get("ctx", {})
    if kind in ("too_short", "string_too_short") and limits["min_length"] == 1:
        return "must not be empty"
    if kind == "too_long":
        return f"should have at most {limits['max_length']} values, not {limits['actual_length']}"
    known = {"model_type": "a table", "tuple_type": "a list", "bool_type": "true or false"}
    if kind in known:
        return f"should be {known[kind]}"
    return details["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _reason(details: ErrorDetails) -> str:
    """Why a number must not be above its bound."""
    limits = details.get("ctx", {})
    name = {"less_than_equal": "le", "less_than": "lt"}.get(details["type"])
    return reason(limits[name]) if name else ""


def _choices(annotation: Any) -> Iterator[Any]:
    """The values that a type names one by one."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _unknown_key(parts: list[str], value: Any, known: list[str], entry: type[Section] | None) -> str:
    """known: all dotted keys of a recipe. entry: the table that the key is in, if it is an entry of a list."""
    *table, name = parts
    prefix = "".join(f"{part}." for part in table)
    if entry is not None:
        prefix, known = "", list(entry.model_fields)
    allowed = list(dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)))
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    name, parts = name[:LONGEST_KEY], [part[:LONGEST_KEY] for part in parts[:LONGEST_PATH]]
    close = [prefix + match for match in difflib.get_close_matches(name, allowed, n=1)]
    tails = {key.rpartition(".")[2]: key for key in known}
    far = [tails[match] for match in difflib.get_close_matches(name, tails, n=1)]
    nearest = next(iter(elsewhere + close + far), None)
    where = f"[{'.'.join(table)}] has" if table else "sections are"
    hint = f"; did you mean {nearest}?" if nearest else ";"
    came = "" if isinstance(value, dict) else f", got {short(value)}"
    return f"{'.'.join(parts)} is not a key of a recipe{came}{hint} {where}: {', '.join(allowed)}"


def short(value: Any) -> str:
    """A value as messages repeat it: at most 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:197]}..."
