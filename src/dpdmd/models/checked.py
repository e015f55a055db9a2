"""Load a network and see that its files give every weight: a library only logs what it fills with random numbers."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.models.sizes import build_empty, no_larger_than_files
from dpdmd.store.errors import InputError, reading
from dpdmd.store.messages import without_loading_bars


def load_checked(
    component_class: Any,
    source: str | Path,
    part: str,
    *,
    named: str = "",
    subfolder: str = "",
    dtype: torch.dtype = torch.float32,
    optional: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Load a network of diffusers or transformers from safetensors with `from_pretrained`, and check that it is whole.

    part, named: what to call it in an error, and its source, if that is not the folder. optional: modules that are None
    if the files do not have all of them. unused: endings of weights that may be missing, since no call uses them.
    options: more of `from_pretrained`.
    Raises ValueError naming the weights that are missing, of another shape, or that the network has no place for, and
    for a configuration of a network that is far larger than its files.
    Weights of parts that this class does not have, such as another head, may be in the file.
    """
    from diffusers import ModelMixin

    of_diffusers = issubclass(component_class, ModelMixin)
    folder, named = Path(source, subfolder), named or str(source)
    # diffusers itself refuses other shapes by name. transformers prints a table and raises a pointer to it.
    own = {} if of_diffusers else {"ignore_mismatched_sizes": True, "trust_remote_code": False}
    with reading(named, part), without_loading_bars(), no_larger_than_files(folder, named, part):
        if of_diffusers:
            build_empty(component_class, source, subfolder)
        network, info = component_class.from_pretrained(
            source, subfolder=subfolder, dtype=dtype, use_safetensors=True, output_loading_info=True, **own, **options
        )
    absent = {name for name in optional if any(key.startswith(f"{name}.") for key in info["missing_keys"])}
    for name in absent:
        setattr(network, name, None)
    missing = sorted(
        key for key in info["missing_keys"] if key.partition(".")[0] not in absent and not key.endswith(unused)
    )
    shapes = sorted(
        f"{name} {tuple(given)} in the file, {tuple(needed)} in its configuration"
        for name, given, needed in info["mismatched_keys"]
    )
    placeless = sorted(info["unexpected_keys"] if of_diffusers else _inside(info["unexpected_keys"], network))
    require_whole(named, part, missing=missing, shapes=shapes, placeless=placeless)
    return network


def require_whole(named: str, part: str, *, missing: list[str], shapes: list[str], placeless: list[str]) -> None:
    """Raises ValueError for weights that are missing, of another shape, or more than a configuration describes."""
    for names, what in (
        (missing, "missing"),
        (shapes, "of another shape"),
        (placeless, "more than its configuration describes"),
    ):
        if names:
            raise InputError(
                f"{named}: cannot read its {part}: {len(names)} tensors are {what}, the first is {names[0]}; the file "
                "is damaged, or it belongs to another config.json"
            )


def _inside(names: Collection[str], network: nn.Module) -> list[str]:
    """Those of the names that belong to a part which the network has: more layers, but not another head."""
    parts = {name for name, _ in network.named_children()} | {name.partition(".")[0] for name in network.state_dict()}
    return [name for name in names if name.partition(".")[0] in parts]
