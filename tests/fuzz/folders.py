"""Copies of tiny model folders: other writings of the same model, and damaged ones."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dpdmd.store.files import read_json

ABSURD = [0, -1, 10**5, 10**9, 10**18, 2**64, 10**40, 1e300, -1e300, float("nan"), float("inf")]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from(ABSURD), st.floats(-2, 2), st.text(max_size=5),
    st.sampled_from([[], [[]], {}, {"a": 1}, [2, 2], ["x"], [10**9, 10**9], ["None", None]]),
)  # fmt: skip


def copied(folder: str | Path, out: Path) -> Path:
    """A copy of links to the same files: what is changed must be replaced, and is not written into."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out, copy_function=os.link)
    return out


def replace(path: Path, content: bytes | str) -> None:
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def part_of(file: Path, folder: Path) -> str:
    """What a message must name: the part, or the file of the whole."""
    return file.name if file.parent == folder else file.parent.name


def json_files(folder: Path) -> list[Path]:
    """Those that describe a model; what else is there says how it was made."""
    names = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer.json", "tokenizer_config.json")
    return sorted(path for path in folder.rglob("*.json") if path.name in names)


def configurations(folder: Path) -> list[Path]:
    return [path for path in json_files(folder) if path.name.endswith("config.json")]


def weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def places(value: Any, where: tuple = ()) -> list[tuple]:
    """The paths of all values in a JSON value."""
    found = [where] if where else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, inner in items for place in places(inner, (*where, key))]


def with_value(content: Any, place: tuple, value: Any) -> Any:
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def reordered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key], rng) for key in rng.sample(list(value), len(value))}
    return value


def reshard(file: Path, number: int, rng: random.Random) -> list[Path]:
    """Write the tensors of a file as shards with an index, as the libraries do."""
    tensors, stem = load_file(file), file.stem
    groups: list[list[str]] = [[] for _ in range(min(number, len(tensors)))]
    for position, name in enumerate(rng.sample(sorted(tensors), len(tensors))):
        groups[position % len(groups)].append(name)
    file.unlink()
    shards = [file.with_name(f"{stem}-{i:05}-of-{len(groups):05}.safetensors") for i in range(1, len(groups) + 1)]
    for shard, names in zip(shards, groups, strict=True):
        save_file({name: tensors[name] for name in names}, shard, metadata={"format": "pt"})
    index = {name: shard.name for shard, names in zip(shards, groups, strict=True) for name in names}
    size = sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    file.with_name(f"{file.name}.index.json").write_text(text)
    return shards


def rename_variant(folder: Path, variant: str) -> None:
    for file in weights(folder):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def rewrite(file: Path, rng: random.Random) -> None:
    """The same JSON with its keys in another order, and other spaces. Lists and texts of a tokenizer stay."""
    content = read_json(file)
    indent = rng.choice([None, 0, 1, 7, "\t"])
    text = json.dumps(reordered(content, rng), indent=indent, ensure_ascii=rng.random() < 0.5)
    replace(file, "\n" * rng.randrange(3) + text + " \r\n" * rng.randrange(3))
