"""How much of a LoRA fits a network: libraries leave out what does not, and draw the base."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dpdmd.store.errors import InputError, library_errors
from dpdmd.store.messages import without_loading_bars

logger = logging.getLogger(__name__)

NOTHING_FITS = "not found in the base model"  # what peft says, with the names of all layers

# Parts of the names of a layer's two matrices, whatever the tool.
DOWN, UP = ("lora_A.", "lora_down.", "lora.down."), ("lora_B.", "lora_up.", "lora.up.")


def require_whole(tensors: Mapping[str, Tensor], source: object) -> int:
    """The number of layers of a LoRA.

    Raises ValueError for a layer with one of its two matrices, whose other one would be random, and for values that are
    not finite.
    """
    downs, ups = _layers(tensors, DOWN), _layers(tensors, UP)
    if halves := sorted(downs ^ ups):
        raise InputError(f"{source}: {len(halves)} layers of the LoRA lack one of their matrices, such as {halves[0]}")
    wrong = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wrong:
        raise InputError(f"{source}: {len(wrong)} tensors of the LoRA are not finite, the first is {wrong[0]}")
    return len(downs)


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """`library_errors` around the loading of a LoRA, quiet; that nothing fits is left to `require_applied`."""
    try:
        with library_errors(what), without_loading_bars():
            yield
    except InputError as error:
        if NOTHING_FITS not in str(error.__cause__):
            raise


def require_applied(applied: int, given: int, source: object, base: str) -> None:
    """Raises ValueError if no layer of a LoRA fits its base; says how many do if it is not all of them."""
    if not applied:
        raise InputError(f"{source} is not a LoRA for {base}: none of its {given} layers is one of the model's")
    if applied < given:
        logger.warning("%s: %d of its %d layers fit %s; the others were left out", source, applied, given, base)


def num_adapted(*networks: nn.Module) -> int:
    """The number of layers of networks that have a LoRA."""
    return sum(isinstance(module, BaseTunerLayer) for network in networks for module in network.modules())


def _layers(tensors: Mapping[str, Tensor], halves: tuple[str, ...]) -> set[str]:
    """The names of layers that have this half."""
    return {name.partition(half)[0].rstrip("._") for name in tensors for half in halves if half in name}
