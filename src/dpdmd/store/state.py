"""Files that dpdmd has written and reads again: checked against a schema when read, since anybody may have edited them.

    entries = read_state(folder / "best.json", BestFile).students

A schema is a pydantic model of what is used of a file. Keys that it does not name pass, so that files of other versions
can be read.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpdmd.store.files import read_json

T = TypeVar("T", bound=BaseModel)

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class State(BaseModel):
    """The schema of a file: no conversion ("4" is no number), no NaN, further keys are kept in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


def read_state(path: str | Path, schema: type[T]) -> T:
    """Read a JSON file that dpdmd has written. Raises ValueError naming file, key, what came and what is expected."""
    return checked(read_json(path), schema, path)


def state_or_none(path: str | Path, schema: type[T]) -> T | None:
    """`read_state`, or None where the file is missing or damaged: for what can be made again."""
    try:
        return read_state(path, schema)
    except (ValueError, OSError):
        return None


def checked(content: Any, schema: type[T], source: str | Path) -> T:
    """Content of a JSON file as `schema`. Raises ValueError like `read_state`; source: for its message."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{source}: {_in_words(error)}") from None


def _in_words(error: ValidationError) -> str:
    first, number = error.errors(include_url=False)[0], error.error_count()
    where, rule = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "missing":
        found = f"{where} is missing"
    elif first["type"] in ("model_type", "dict_type") and not where:
        found = f"it should be a JSON object, got {_short(first['input'])}"
    else:
        found = f"{where + ' ' if where else ''}{rule}, got {_short(first['input'])}"
    return found if number == 1 else f"{found}, and {number - 1} more"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
