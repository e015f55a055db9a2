"""Prompt lists: a text file, a table, a Hugging Face dataset, composed or the built-in world's captions."""

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dpdmd.data.tables import TABLES, read_utf8, table_rows
from dpdmd.store.errors import library_errors, require_text
from dpdmd.store.names import expanded, local_or_hub_id

SCENES = "scenes"
GENERIC = "generic"
COLUMN = "prompt"
DATASET_PREFIX = "datasets:"
# Files that would be nonsense line by line.
NOT_LINES = (".yaml", ".yml", ".toml", ".xml", ".html", ".parquet", ".arrow", ".xlsx", ".xls", ".ods", ".zip", ".gz")
HOW = (
    "write one per line (# starts a comment) in a .txt file, a table with a column {column!r} (.csv, .tsv, .jsonl), or "
    "a .json list"
)


def read_prompts(path: str | Path, column: str = COLUMN) -> list[str]:
    """The prompts of a UTF-8 file in their order; only surrounding white space is removed.

    .jsonl, .ndjson, .csv, .tsv: the value of `column` in each row. .json: a list of texts, or of objects with `column`.
    Any other file: one prompt per line; blank lines and lines starting with # are skipped. Raises ValueError naming
    file and line if the file is missing, broken, of a kind that has no lines, or has no prompts.
    """
    path = expanded(path)
    suffix = Path(path).suffix.lower()
    if suffix in NOT_LINES:
        raise ValueError(f"{path}: prompts are not read from {suffix}; {HOW.format(column=column)}")
    if suffix in TABLES:
        prompts = _take(table_rows(path), column)
    else:
        # Not splitlines(): it also splits at characters such as U+2028 that may stand inside a prompt.
        lines = (line.strip() for line in read_utf8(path).split("\n"))
        prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} has no prompts: {HOW.format(column=column)}")
    return prompts


def dataset_prompts(name: str, column: str = COLUMN) -> list[str]:
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
    prompts = _take(((f"{name}, row {number}", {column: text}) for number, text in enumerate(dataset[column])), column)
    if not prompts:
        raise ValueError(f"the dataset {name} has no prompts in column {column!r}")
    return prompts


def training_prompts(sources: str | Sequence[tuple[str, float]], column: str = COLUMN) -> list[str]:
    """The prompts that `data.prompts` names, in their order. Raises ValueError like the readers.

    sources: one source ("scenes", "generic", "datasets:ID" or a file), or several with weights. Of several the list
    holds as many prompts of each as its share of the weights, every prompt at least once: the prompts of a source that
    has too few come several times.
    """
    if isinstance(sources, str):
        return source_prompts(sources, column)
    lists = [(source_prompts(source, column), weight) for source, weight in sources]
    if len(lists) == 1:
        return lists[0][0]
    # Prompts for each unit of weight; the source that has most for its weight is listed once.
    density = max(len(prompts) / weight for prompts, weight in lists)
    return [prompt for prompts, weight in lists for prompt in islice(cycle(prompts), round(density * weight))]


def source_prompts(source: str, column: str = COLUMN) -> list[str]:
    """The prompts of one source. Raises ValueError like the readers."""
    if source == SCENES:
        from dpdmd.world.prompts import training_prompts as scenes_prompts

        return scenes_prompts()
    if source == GENERIC:
        from dpdmd.data.generic import generic_prompts

        return generic_prompts()
    if source.startswith(DATASET_PREFIX):
        return dataset_prompts(source.removeprefix(DATASET_PREFIX), column)
    return read_prompts(source, column)


def evaluation_prompts_of(teacher: str) -> list[str]:
    """The default prompts to judge students of a teacher on. Raises ValueError for a teacher that is not built in."""
    from dpdmd.models.load import BUILT_IN
    from dpdmd.world.prompts import evaluation_prompts

    if teacher not in BUILT_IN:
        raise ValueError(
            f"give --prompts FILE: only the built-in teachers have default prompts, and {teacher} is not built in"
        )
    return evaluation_prompts()


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


def _take(rows: Iterable[tuple[str, Any]], column: str) -> list[str]:
    """The non-empty texts in `column` of (where, row) pairs, or the rows that are texts; `where` is for errors."""
    prompts = []
    for where, row in rows:
        text = _value(row, column)
        if not isinstance(text, str):
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where} has no text under {column!r} (data.column); it has {keys}")
        require_text(text, where)
        if text.strip():
            prompts.append(text.strip())
    return prompts


def _value(row: Any, column: str) -> Any:
    """What is under `column`, or under the only name that is the same but for upper and lower case."""
    if not isinstance(row, dict):
        return row
    if column in row:
        return row[column]
    alike = [key for key in row if isinstance(key, str) and key.strip().lower() == column.lower()]
    return row[alike[0]] if len(alike) == 1 else None
