"""A network whose weights stay in their files: to be spread over processes, each of which reads only its own part."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dpdmd.models.checked import require_whole
from dpdmd.models.sizes import no_larger_than_files
from dpdmd.store.errors import library_errors, reading


def blank_network(component_class: Any, config: dict[str, Any], files: list[Path], named: str, part: str) -> nn.Module:
    """The network of a configuration with its parameters on the meta device and its tables (buffers) computed.

    files: its weights, all in one folder. Raises ValueError for a configuration of a network far larger than they are.
    """
    from accelerate import init_empty_weights

    with (
        library_errors(f"{named}: its configuration describes no {part}"),
        no_larger_than_files(files[0].parent, named, part),
        init_empty_weights(include_buffers=False),
    ):
        return component_class.from_config(config)


@contextmanager
def open_weights(files: list[Path], named: str, part: str) -> Iterator[dict[str, Any]]:
    """{name: slice} of the tensors in safetensors files: `slice[low:high]` reads these rows and nothing else.

    named, part: what to call them in an error. Raises ValueError for a file that is damaged.
    """
    with ExitStack() as stack:
        weights = {}
        for path in files:
            with reading(named, f"{part} ({path.name})"):
                file = stack.enter_context(safe_open(path, framework="pt"))
                weights |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        yield weights


def require_fit(network: nn.Module, weights: Mapping[str, Any], named: str, part: str) -> None:
    """Raises ValueError naming the weights of a network that files lack, have in another shape, or have beside it."""
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.get_shape()) for name, tensor in weights.items()}
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    require_whole(
        named,
        part,
        missing=sorted(needed.keys() - given.keys()),
        shapes=sorted(
            f"{name} {shape} in the file, {needed[name]} in its configuration"
            for name, shape in given.items()
            if needed.get(name, shape) != shape
        ),
        placeless=sorted(
            name for name in given.keys() - needed.keys() if not any(re.search(words, name) for words in ignored)
        ),
    )


def beginnings(weights: Mapping[str, Any]) -> str:
    """A hash of the first values of every tensor in files, as `store.digests.fingerprint` of a network: cheap."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        shape = weights[name].get_shape()
        values = weights[name][:1] if shape else weights[name][...]
        digest.update(name.encode() + values.flatten()[:16].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def without_memory(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with zeros for its parameters, all in one number of memory: for libraries that add adapters to it."""
    zero = torch.zeros((), dtype=dtype)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(zero.expand(parameter.shape), requires_grad=False))
    return network
