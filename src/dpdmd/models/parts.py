"""Load the components of a diffusers pipeline one by one."""

import inspect
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.models import pipeline_files
from dpdmd.models.checked import load_checked
from dpdmd.models.pipeline_files import (
    INDEX,
    checked_index,
    only_variant,
    part_class,
    parts_of,
    require_unquantised,
    weight_files,
)
from dpdmd.models.sizes import require_plausible
from dpdmd.models.tokenizer import load_tokenizer, require_fit
from dpdmd.store.errors import InputError, reading
from dpdmd.store.files import read_json
from dpdmd.store.messages import without_loading_bars

# Texts that a pipeline may lack: Stable Diffusion 3 does without T5.
OPTIONAL_TEXTS = ("text_encoder_3", "tokenizer_3")
# Of every download: neither pickles nor code.
SAFELY: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}


def local_folder(source: str) -> Path:
    """The folder of a pipeline: `source` itself, or the snapshot of a hub id, downloaded unless it is cached."""
    return Path(source) if Path(source).is_dir() else _downloaded(source)


@cache
def _downloaded(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline

    with reading(hub_id, "files"):
        return Path(DiffusionPipeline.download(hub_id, variant=only_variant(_files_of(hub_id)), **SAFELY))


def _files_of(hub_id: str) -> list[str]:
    """The names of a repository's files, as the hub or the local cache knows them."""
    from huggingface_hub import get_cached_repo_tree, list_repo_files
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HTTPError

    try:
        return list_repo_files(hub_id)
    except (OSError, HTTPError):  # not to be reached, or refused: the download says which
        with suppress(CachedRepoTreeNotFoundError, OSError):
            return [file.path for file in get_cached_repo_tree(hub_id)]
    return []


def cached_folder(source: str) -> Path | None:
    """As `local_folder`, without asking the hub; None for a hub id that is not in the cache as a whole."""
    if Path(source).is_dir():
        return Path(source)
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(source, local_files_only=True, **SAFELY))
    except (OSError, ValueError):
        return None


def read_index(source: str) -> dict[str, Any]:
    """The checked model_index.json of a folder or hub id. Raises ValueError if it cannot be read."""
    if Path(source).is_dir():
        return pipeline_files.read_index(source)
    from diffusers import DiffusionPipeline

    with reading(source, INDEX):
        index: Any = DiffusionPipeline.load_config(source)
    return checked_index(dict(index), source)


def load_config(component_class: Any, source: str, name: str, older_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON configuration of one component, without its weights; the class's defaults for what it lacks.

    older_names: of the class. Raises ValueError if it cannot be read, is that of another class, or says that the
    weights are stored quantised.
    """
    with reading(source, f"{name} configuration"):
        config = component_class.load_config(source, subfolder=name)
    config = _object(config, source, f"{name} configuration")
    stored = config.get("_class_name", component_class.__name__)
    if stored not in (component_class.__name__, *older_names):
        raise InputError(f"{source}: its {name} is a {stored}, and this family needs a {component_class.__name__}")
    require_unquantised(config, source, name)
    require_plausible(config, source, name)
    return {key: value for key, value in _defaults(component_class).items() if key not in config} | config


def load_scheduler_config(source: str) -> dict[str, Any]:
    """The JSON configuration of a pipeline's scheduler, of whatever class. Raises ValueError if it cannot be read."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    any_class: Any = FlowMatchEulerDiscreteScheduler  # all read the JSON in the same way
    with reading(source, "scheduler configuration"):
        config: Any = any_class.load_config(source, subfolder="scheduler")
    return _object(config, source, "scheduler configuration")


def _object(config: Any, source: str, part: str) -> dict[str, Any]:
    """A configuration, if it is a JSON object. Raises ValueError otherwise."""
    if not isinstance(config, dict):
        raise InputError(f"{source}: its {part} must be a JSON object, got {type(config).__name__}")
    return dict(config)


def _defaults(component_class: Any) -> dict[str, Any]:
    """What the class takes for a key that its configuration lacks."""
    parameters = inspect.signature(component_class.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def require_texts(source: str) -> None:
    """Raises ValueError for a local pipeline with text encoders that are null or stored quantised, before any loads."""
    if not Path(source).is_dir():
        return
    index = pipeline_files.read_index(source)
    texts = [name for name in index if name.startswith(("text_encoder", "tokenizer")) and name not in OPTIONAL_TEXTS]
    if null := [name for name in texts if index[name] == [None, None]]:
        raise InputError(
            f"{source}: {INDEX} has null for {' and '.join(null)}, without which prompts cannot be read; "
            "save the pipeline with them"
        )
    for name, (library, _) in parts_of(index).items():
        path = Path(source, name, "config.json")
        if library == "transformers" and path.is_file():
            config = read_json(path)
            if not isinstance(config, dict):
                raise InputError(f"{path} must be a JSON object, got {type(config).__name__}")
            require_unquantised(config, source, name)
            require_plausible(config, source, name)


def load_network(component_class: Any, source: str, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a single network of a pipeline from safetensors: a denoising network, an autoencoder or a text encoder.

    Raises ValueError if weights are missing, corrupt or more than its configuration describes.
    """
    folder = local_folder(source)
    variant = weight_files(folder / name, source, name)[1]
    return load_checked(
        component_class, folder, f"{name} weights", named=source, subfolder=name, dtype=dtype, variant=variant
    )


def network_files(source: str, name: str) -> list[Path]:
    """The safetensors files with the weights of a pipeline's network, which are downloaded if needed.

    Raises ValueError if there are none.
    """
    return weight_files(local_folder(source) / name, source, name)[0]


def stored_dtype(source: str, name: str) -> torch.dtype:
    """`pipeline_files.stored_dtype` of a folder or hub id, whose files are downloaded if needed."""
    return pipeline_files.stored_dtype(local_folder(source), source, name)


def load_part(component_class: Any, source: str, name: str) -> nn.Module:
    """Load a single component with `load_network`, frozen and in evaluation mode."""
    return load_network(component_class, source, name).eval().requires_grad_(False)


def load_components(source: str, dtype: torch.dtype, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """{part: component} of a pipeline, each loaded and checked by itself; None for parts that are null or left out.

    Raises ValueError naming the part that cannot be read, and for parts with code of their own.
    """
    from transformers import PreTrainedTokenizerBase

    folder = local_folder(source)
    index = read_index(source)
    # Given as None: diffusers asks for a part that is null, but is not one of those that the class calls optional.
    null = [name for name, value in index.items() if value == [None, None]]
    found: dict[str, Any] = dict.fromkeys((*without, *null))
    for name, (library, class_name) in parts_of(index).items():
        if name in without:
            continue
        component: Any = part_class(source, name, library, class_name)
        if issubclass(component, nn.Module):
            found[name] = load_network(component, source, name, dtype)
        elif issubclass(component, PreTrainedTokenizerBase):
            found[name] = load_tokenizer(component, str(folder), name, named=source)
        else:  # a scheduler, an image processor
            with reading(source, name), without_loading_bars():
                found[name] = component.from_pretrained(folder, subfolder=name)
    require_fit(found, source)
    return found


def load_text_pipeline(pipeline_class: Any, source: str, *left_out: str, **options: Any) -> Any:
    """Load the stock pipeline without the components `left_out`, to call its `encode_prompt`.

    options: of the pipeline. Its text encoders are frozen, in fp32 and in evaluation mode. Raises ValueError if they
    cannot be read.
    """
    components = load_components(source, torch.float32, without=left_out)
    with reading(source, f"text encoders, as {INDEX} lists them"), without_loading_bars():
        folder = local_folder(source)
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **components, **options
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
