"""What a pipeline folder says of itself: model_index.json, and the files in which its parts' weights are."""

import importlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dpdmd.store.errors import InputError, reading
from dpdmd.store.files import read_json

INDEX = "model_index.json"
# NAME[.VARIANT][-00001-of-00002][.VARIANT].safetensors, as diffusers and transformers write them.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?(\.(?P<old_style>\w+))?\.safetensors"
)
LIBRARIES = ("diffusers", "transformers")


def checked_index(index: Any, source: str) -> dict[str, Any]:
    """The content of a model_index.json, if it is what diffusers writes. Raises ValueError otherwise.

    A pipeline or a part with code of its own is refused by name: no code of a model is run.
    """
    where = f"{source}: {INDEX}"
    if not isinstance(index, dict):
        raise InputError(f"{where} must be a JSON object, got {type(index).__name__}")
    name = index.get("_class_name")
    if isinstance(name, list):
        raise InputError(
            f"{where} names a pipeline with code of its own, {'.'.join(map(str, name))}; code of a model is not run"
        )
    if not isinstance(name, str):
        raise InputError(f'{where} must name a pipeline class under "_class_name", got {name!r}')
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or _is_option(value):
            continue
        if len(value) != 2 or not (value == [None, None] or all(isinstance(word, str) for word in value)):
            raise InputError(f"{where}: {part} must be [library, class], got {value!r}")
    return index


def _is_option(value: list) -> bool:
    """Whether a list in a model_index.json is an option of the pipeline, such as the layers that Krea 2 reads."""
    return bool(value) and all(isinstance(number, int | float) for number in value)


def read_index(folder: str | Path) -> dict[str, Any]:
    """`checked_index` of the model_index.json in a local folder."""
    return checked_index(read_json(Path(folder) / INDEX), str(folder))


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{part: (library, class)} of an index, without those that are null."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value[0] is not None and not _is_option(value)
    }


def part_class(source: str, part: str, library: str, name: str) -> type:
    """The class of a part. Raises ValueError for code that comes with the model, and for an unknown class."""
    module = library if library in LIBRARIES else f"diffusers.pipelines.{library}"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        raise InputError(
            f"{source}: {INDEX}: {part} is a {library}.{name}, code that comes with the model; it is not run"
        ) from None
    if not isinstance(found, type):
        raise InputError(f"{source}: {INDEX}: {part} is a {name}, which the installed {library} does not have")
    return found


def weight_files(folder: Path, source: str, part: str) -> tuple[list[Path], str | None]:
    """The safetensors files with a part's weights, and their variant, such as "fp16"; None for the plain files.

    A variant is taken only where it is all there is. Raises ValueError if there are no files, or several variants.
    """
    by_variant: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if (match := WEIGHTS.fullmatch(path.name)) is not None:
            by_variant.setdefault(match["variant"] or match["old_style"], []).append(path)
    variant = None if None in by_variant else next(iter(by_variant), None)
    if None not in by_variant and len(by_variant) > 1:
        raise InputError(
            f"{source}: {part}/ has its weights in the variants {', '.join(map(str, by_variant))} and not as plain "
            "files; remove all but one"
        )
    if not by_variant:
        raise InputError(f"{source}: cannot read its {part} weights: there is no .safetensors file in {part}/")
    return by_variant[variant], variant


def only_variant(names: Iterable[str]) -> str | None:
    """The variant to ask for in a repository with these files: that of a part which has no plain weights, if any."""
    parts: dict[str, set[str | None]] = {}
    for name in names:
        part, _, file = name.rpartition("/")
        if part and (match := WEIGHTS.fullmatch(file)) is not None:
            parts.setdefault(part, set()).add(match["variant"] or match["old_style"])
    needed = [variants for variants in parts.values() if None not in variants]
    common = sorted(map(str, set.intersection(*needed))) if needed else []
    return common[0] if common else None


def stored_dtype(folder: Path, source: str, part: str) -> torch.dtype:
    """The dtype in which a part's weights are stored, from the headers of its files: that of most of them.

    Raises ValueError if there are none. fp32 for a dtype that networks do not compute in, such as fp8.
    """
    sizes: Counter[str] = Counter()
    for path in weight_files(folder / part, source, part)[0]:
        with reading(source, f"{part} weights ({path.name})"), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                tensor = file.get_slice(key)
                sizes[tensor.get_dtype()] += math.prod(tensor.get_shape())
    most = sizes.most_common(1)
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(most[0][0] if most else "", torch.float32)


def require_unquantised(config: dict[str, Any], source: str, part: str) -> None:
    """Raises ValueError for the configuration of a part that was saved quantised."""
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else "unknown"
        raise InputError(
            f"{source}: its {part} is stored quantised ({method}), which can be neither trained nor read here; use the "
            'model as it was before: model.dtype = "int8", "fp8" or "nf4" quantises it while it is loaded'
        )
