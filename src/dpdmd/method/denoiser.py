"""A denoiser: one role's network, seen through its family's adapter: `(x_t, t, cond) -> Prediction(x0, eps)`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.method.devices import to_device
from dpdmd.method.paths import Prediction

Denoiser = Callable[[Tensor, Tensor, "Condition"], Prediction]


@dataclass(frozen=True)
class Condition:
    """What a prompt became: named tensors, each (B, ...). The names belong to the family's adapter.

    on_cpu: copies of the masks, the tensors whose name ends in "mask", if the tensors are elsewhere: what a network has
    to know of them, such as a number of tokens, must not be asked of a GPU in every call.
    """

    tensors: dict[str, Tensor]
    on_cpu: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index) -> "Condition":
        """Some of the prompts; `index` is whatever indexes the first axis of a tensor on the CPU."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[to_device(index, tensor.device) if isinstance(index, Tensor) else index]

        return self._each(chosen)

    def to(self, device: torch.device) -> "Condition":
        """The same condition on another device; elsewhere than on the CPU, masks stay there as well."""
        tensors = {name: to_device(tensor, device) for name, tensor in self.tensors.items()}
        if device.type == "cpu":
            return Condition(tensors)
        return Condition(tensors, self.on_cpu or {name: t for name, t in self.tensors.items() if name.endswith("mask")})

    def mask(self, name: str) -> Tensor:
        """A mask (B, L) on the CPU."""
        return self.tensors[name] if self.on_cpu is None else self.on_cpu[name]

    def expand(self, batch_size: int) -> "Condition":
        """One prompt (B = 1) repeated to `batch_size`, without copying."""
        if len(self) != 1:
            raise ValueError(f"only a single prompt can be expanded, got {len(self)}")
        return self._each(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        return Condition(tensors, self.on_cpu and {name: change(tensor) for name, tensor in self.on_cpu.items()})


class Encode(Protocol):
    """From texts to conditioning on the CPU: `models.base.encoded`, or a cache's `condition`."""

    def __call__(self, prompts: list[str], *, negative: bool = False) -> Condition:
        """negative: whether they are negative prompts, which some families encode otherwise."""
        ...


def concatenate(conditions: Iterable[Condition]) -> Condition:
    """Conditions of equal names, one after the other.

    Axis 1, the tokens, may differ in length: the shorter ones are padded with zeros at the end, which in a mask means
    "no token". Families without a mask encode all prompts to one length.
    """
    conditions = list(conditions)
    tensors = {name: _stack([c.tensors[name] for c in conditions]) for name in conditions[0].tensors}
    if all(c.on_cpu is None for c in conditions):
        return Condition(tensors)
    masks = [name for name in tensors if name.endswith("mask")]
    return Condition(tensors, {name: _stack([c.mask(name) for c in conditions]) for name in masks})


def _stack(tensors: list[Tensor]) -> Tensor:
    if tensors[0].ndim < 2:
        return torch.cat(tensors)
    length = max(tensor.shape[1] for tensor in tensors)
    # F.pad counts axes from the last one.
    return torch.cat([F.pad(t, [0, 0] * (t.ndim - 2) + [0, length - t.shape[1]]) for t in tensors])
