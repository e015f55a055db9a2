"""Prompt lists: a text file, a table, a Hugging Face dataset, composed or a built-in world's captions."""

import json
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dpdmd.data.tables import TABLES, read_utf8, table_rows
from dpdmd.store.errors import library_errors, require_text
from dpdmd.store.names import expanded, local_or_hub_id
from dpdmd.world.find import WORLDS, world_named, world_of_teacher

GENERIC = "generic"
COLUMN = "prompt"
DATASET_PREFIX = "datasets:"
# Files that would be nonsense line by line.
NOT_LINES = (".yaml", ".yml", ".toml", ".xml", ".html", ".parquet", ".arrow", ".xlsx", ".xls", ".ods", ".zip", ".gz")
HOW = (
    "write one per line (# starts a comment) in a .txt file, a table with a column {column!r} (.csv, .tsv, .jsonl), or "
    "a .json list"
)

Pair = tuple[str, str | None]  # a prompt and its negative prompt, None: that of all


def read_prompts(path: str | Path, column: str = COLUMN) -> list[str]:
    """The prompts of a UTF-8 file in their order; only surrounding white space is removed.

    .jsonl, .ndjson, .csv, .tsv: the value of `column` in each row. .json: a list of texts, or of objects with `column`.
    Any other file: one prompt per line; blank lines and lines starting with # are skipped. Raises ValueError naming
    file and line if the file is missing, broken, of a kind that has no lines, or has no prompts.
    """
    return _prompts(_read(path, column))


def _read(path: str | Path, column: str, negative_column: str | None = None) -> list[Pair]:
    path = expanded(path)
    suffix = Path(path).suffix.lower()
    if suffix in NOT_LINES:
        raise ValueError(f"{path}: prompts are not read from {suffix}; {HOW.format(column=column)}")
    if suffix in TABLES:
        pairs = _take(table_rows(path), column, negative_column)
    else:
        # Not splitlines(): it also splits at characters such as U+2028 that may stand inside a prompt.
        lines = [line.strip() for line in read_utf8(path).split("\n")]
        _require_no_json(lines, path)
        pairs = _alone(line for line in lines if line and not line.startswith("#"))
    if not pairs:
        raise ValueError(f"{path} has no prompts: {HOW.format(column=column)}")
    return pairs


def _require_no_json(lines: list[str], path: str | Path) -> None:
    """Raises ValueError for JSON under another name, whose brackets and keys would become prompts."""
    first = next(filter(None, lines), "")
    if not first.startswith(("[", "{")):
        return
    for text, name in (("\n".join(lines), ".json"), (first, ".jsonl")):
        if _is_json(text):
            raise ValueError(f"{path} has JSON in it and would be read line by line; call it NAME{name}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _dataset(name: str, column: str, negative_column: str | None) -> list[Pair]:
    """The prompts of a dataset for the package `datasets`.

    name: hub id or folder, followed by ":SPLIT" for a split other than "train". Raises ValueError if the package is not
    installed, the dataset cannot be loaded, or it has no such column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f'data.prompts = "{DATASET_PREFIX}{name}" needs the package datasets: pip install datasets'
        ) from None
    source, _, split = name.partition(":")
    with library_errors(f"cannot load the dataset {name}"):
        dataset = load_dataset(local_or_hub_id(source), split=split or "train")
    if column not in dataset.column_names:
        raise ValueError(
            f"the dataset {name} has no column {column!r}; it has {', '.join(dataset.column_names)} (data.column)"
        )
    if negative_column is not None and negative_column not in dataset.column_names:
        raise ValueError(
            f"the dataset {name} has no column {negative_column!r}; it has {', '.join(dataset.column_names)} "
            "(data.negative_column)"
        )
    columns = [column] if negative_column is None else [column, negative_column]
    texts = zip(*(dataset[name] for name in columns), strict=True)
    rows = ((f"{name}, row {number}", dict(zip(columns, row, strict=True))) for number, row in enumerate(texts))
    pairs = _take(rows, column, negative_column)
    if not pairs:
        raise ValueError(f"the dataset {name} has no prompts in column {column!r}")
    return pairs


def training_prompts(sources: str | Sequence[tuple[str, float]], column: str = COLUMN) -> list[str]:
    """The prompts that `data.prompts` names, in their order. Raises ValueError like the readers.

    sources: one source (a built-in world such as "scenes", "generic", "datasets:ID" or a file), or several with
    weights. Of several the list holds as many prompts of each as its share of the weights, every prompt at least once:
    the prompts of a source that has too few come several times.
    """
    return _prompts(training_pairs(sources, column))


def training_pairs(
    sources: str | Sequence[tuple[str, float]], column: str = COLUMN, negative_column: str | None = None
) -> list[Pair]:
    """`training_prompts`, each with its negative prompt: what a table has in `negative_column`, None where it has none.

    Raises ValueError like the readers, and when no prompt of any source has a negative prompt in that column.
    """
    if isinstance(sources, str):
        sources = [(sources, 1.0)]
    lists = [(_of_source(source, column, negative_column), weight) for source, weight in sources]
    if negative_column is not None and not any(negative is not None for pairs, _ in lists for _, negative in pairs):
        raise ValueError(
            f"data.negative_column: no prompt of {', '.join(source for source, _ in sources)} has a negative prompt "
            f"in a column {negative_column!r}"
        )
    if len(lists) == 1:
        return lists[0][0]
    # Prompts for each unit of weight; the source that has most for its weight is listed once.
    density = max(len(pairs) / weight for pairs, weight in lists)
    return [pair for pairs, weight in lists for pair in islice(cycle(pairs), round(density * weight))]


def source_prompts(source: str, column: str = COLUMN) -> list[str]:
    """The prompts of one source. Raises ValueError like the readers."""
    return _prompts(_of_source(source, column, None))


def _of_source(source: str, column: str, negative_column: str | None) -> list[Pair]:
    if source in WORLDS:
        return _alone(world_named(source).training_prompts())
    if source == GENERIC:
        from dpdmd.data.generic import generic_prompts

        return _alone(generic_prompts())
    if source.startswith(DATASET_PREFIX):
        return _dataset(source.removeprefix(DATASET_PREFIX), column, negative_column)
    return _read(source, column, negative_column)


def _prompts(pairs: list[Pair]) -> list[str]:
    return [prompt for prompt, _ in pairs]


def _alone(prompts: Iterable[str]) -> list[Pair]:
    return [(prompt, None) for prompt in prompts]


def evaluation_prompts_of(teacher: str) -> list[str]:
    """The default prompts to judge students of a teacher on. Raises ValueError for a teacher that is not built in."""
    world = world_of_teacher(teacher)
    if world is None:
        raise ValueError(
            f"give --prompts FILE: only the built-in teachers have default prompts, and {teacher} is not built in"
        )
    return world.evaluation_prompts()


def lint_prompts(prompts: list[str], tokenizers: dict[str, tuple[Any, int]]) -> list[str]:
    """Warnings in plain words about repeated prompts and prompts that are too long for a text encoder.

    tokenizers: {name: (tokenizer, maximum number of tokens that its encoder is given)}.
    """
    messages = []
    unique = list(dict.fromkeys(prompts))
    if len(unique) < len(prompts):
        repeats = len(prompts) - len(unique)
        messages.append(f"{repeats} of {len(prompts)} prompts repeat another one; they are drawn more often")
    for name, (tokenizer, limit) in tokenizers.items():
        lengths = [len(ids) for ids in tokenizer(unique, truncation=False, verbose=False).input_ids]
        cut = [prompt for prompt, length in zip(unique, lengths, strict=True) if length > limit]
        if cut:
            messages.append(
                f"{len(cut)} of {len(unique)} different prompts are longer than the {limit} tokens that {name} reads; "
                f"it ignores the rest. The longest has {max(lengths)}, the first is {cut[0][:80]!r}"
            )
    return messages


def _take(rows: Iterable[tuple[str, Any]], column: str, negative_column: str | None = None) -> list[Pair]:
    """The non-empty texts in `column` of (where, row) pairs, or the rows that are texts; `where` is for errors.

    Each with the text in `negative_column`, if the row has one.
    """
    pairs: list[Pair] = []
    for where, row in rows:
        text = _value(row, column)
        if not isinstance(text, str):
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where} has no text under {column!r} (data.column); it has {keys}")
        require_text(text, where)
        if text.strip():
            pairs.append((text.strip(), _negative(where, row, negative_column)))
    return pairs


def _negative(where: str, row: Any, column: str | None) -> str | None:
    if column is None or not isinstance(row, dict) or (text := _value(row, column)) is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{where} has no text under {column!r} (data.negative_column), but {type(text).__name__}")
    require_text(text, where)
    return text.strip()


def _value(row: Any, column: str) -> Any:
    """What is under `column`, or under the only name that is the same but for upper and lower case."""
    if not isinstance(row, dict):
        return row
    if column in row:
        return row[column]
    alike = [key for key in row if isinstance(key, str) and key.strip().lower() == column.lower()]
    return row[alike[0]] if len(alike) == 1 else None
