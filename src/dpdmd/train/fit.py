"""Will a recipe fit a device, and what makes it fit: for `dpdmd plan`."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dpdmd.models.base import ModelAdapter
from dpdmd.train.config import Recipe
from dpdmd.train.cost import network_sizes, state_bytes
from dpdmd.train.memory import peak_bytes
from dpdmd.train.plan import make_plan

# What saves memory, in the order in which it costs least; each on top of those before it.
SAVINGS = (
    "train.precision=bf16",
    "train.gradient_checkpointing=true",
    "train.batch_size=1",
    "model.dtype=bf16",
    'lora.roles=["student", "fake_score"]',
)


@dataclass(frozen=True)
class Need:
    """Bytes on one device: what stays, and activations with gradients at their peak, None where not counted."""

    state: int
    peak: int | None

    @property
    def total(self) -> int:
        return self.state + (self.peak or 0)


def memory_need(recipe: Recipe, adapter: ModelAdapter) -> Need:
    """Of one process, without sharding."""
    state = state_bytes(recipe, network_sizes(recipe, adapter))
    peak = peak_bytes(recipe, make_plan(recipe, adapter), adapter)
    return Need(sum(state.values()) - (state["gradients"] if peak is not None else 0), peak)


def savings(
    load: Callable[[list[str]], Recipe], adapter: ModelAdapter, need: Need, available: int
) -> list[tuple[str, Need]]:
    """Settings that lower the need, one on top of the other, until it fits `available` bytes or none is left.

    load: from further overrides to the recipe. need: that of the recipe as it is. Settings that change nothing, or that
    the recipe's other settings exclude, are left out.
    """
    found: list[tuple[str, Need]] = []
    overrides: list[str] = []
    recipe = load([])
    for setting in SAVINGS:
        if need.total <= available:
            break
        try:
            changed = load([*overrides, setting])
        except ValueError:
            continue
        if changed == recipe:
            continue
        smaller = memory_need(changed, adapter)
        if smaller.total < need.total:
            overrides.append(setting)
            recipe, need = changed, smaller
            found.append((setting, need))
    return found


def device_memory() -> int:
    """Of the GPU, else of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def seconds_per_update(recipe: Recipe, adapter: ModelAdapter, number: int = 2) -> float:
    """Measured: the model is loaded and trained for one update more than `number`, and nothing is written."""
    from dpdmd.train.trainer import Trainer

    trainer = Trainer(recipe, adapter)
    trainer.iterate()
    started = time.perf_counter()
    for _ in range(number):
        trainer.iterate()
    return (time.perf_counter() - started) / number
