"""Load the components of a diffusers pipeline one by one."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dpdmd.store.errors import reading
from dpdmd.store.messages import without_loading_bars


def local_folder(source: str) -> Path:
    """The folder of a pipeline: `source` itself, or the snapshot of a hub id, downloaded unless it is cached."""
    if Path(source).is_dir():
        return Path(source)
    from diffusers import DiffusionPipeline

    with reading(source, "files"):
        return Path(DiffusionPipeline.download(source, use_safetensors=True))


def load_config(component_class: type, source: str, name: str) -> dict[str, Any]:
    """Read the JSON configuration of one component, without its weights. Raises ValueError if it cannot be read."""
    with reading(source, f"{name} configuration"):
        return dict(component_class.load_config(source, subfolder=name))


def load_network(component_class: type, source: str, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a single component of a pipeline from safetensors.

    Raises ValueError if weights are missing or corrupt.
    """
    with reading(source, f"{name} weights"), without_loading_bars():
        return component_class.from_pretrained(source, subfolder=name, dtype=dtype, use_safetensors=True)


def stored_dtype(source: str, name: str) -> torch.dtype:
    """The dtype in which a component's weights are stored, from the headers of its files: that of most of them.

    Raises ValueError if there are none. fp32 for a dtype that networks do not compute in, such as fp8.
    """
    sizes: Counter[str] = Counter()
    with reading(source, f"{name} weights"):
        for path in sorted((local_folder(source) / name).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # not a dict
                    tensor = file.get_slice(key)
                    sizes[tensor.get_dtype()] += math.prod(tensor.get_shape())
    if not sizes:
        raise ValueError(f"{source}: cannot read its {name} weights: there is no .safetensors file in {name}/")
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(sizes.most_common(1)[0][0], torch.float32)


def load_part(component_class: type, source: str, name: str) -> nn.Module:
    """Load a single component with `load_network`, frozen and in evaluation mode."""
    return load_network(component_class, source, name).eval().requires_grad_(False)


def load_text_pipeline(pipeline_class: type, source: str, *left_out: str) -> Any:
    """Load the stock pipeline without the components `left_out`, to call its `encode_prompt`.

    Its text encoders are frozen, in fp32 and in evaluation mode. Raises ValueError if they cannot be read.
    """
    with reading(source, "text encoders"), without_loading_bars():
        pipeline = pipeline_class.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, **dict.fromkeys(left_out)
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def tokenizers(texts: Any, token_limits: tuple[tuple[str, int | None], ...]) -> dict[str, tuple[Any, int]]:
    """{name: (tokenizer, maximum number of tokens)} for the tokenizers that a text pipeline has.

    token_limits: see `models.base.ModelAdapter`.
    """
    found = ((name, getattr(texts, name, None), limit) for name, limit in token_limits)
    return {
        name: (tokenizer, limit or tokenizer.model_max_length)
        for name, tokenizer, limit in found
        if tokenizer is not None
    }
