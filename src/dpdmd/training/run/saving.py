"""Checkpoints beside training: copied in memory while training waits, then written, hashed and renamed in a thread."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from dpdmd.distributed.wrapping import own_part


class Saving:
    """At most one write in the background. Every process of a run must call the same methods in the same order.

    A thread exchanges messages with the threads of the other processes in a group of its own, since the processes
    compute meanwhile.
    """

    def __init__(self):
        self.group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[dist.ProcessGroup | None], object]) -> None:
        """Wait for the write before, then let `write`, called with the group of the threads, begin.

        Raises what the write before raised.
        """
        self.wait()
        if dist.is_initialized() and self.group is None:
            # Of all processes, so that none is outside of it.
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=1)))

        def run() -> None:
            try:
                write(self.group)
            except BaseException as error:  # noqa: BLE001  # it is raised where training waits
                self._error = error

        # A daemon: a second Ctrl-C, which ends at once, does not wait for it. What is half-written is never read.
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what the write raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if (error := self._error) is not None:
            self._error = None
            raise error


@torch.no_grad()
def staged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU of what this process holds, which training no longer changes."""
    copies = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors.items()}
    for name, copy in copies.items():
        own_part(copy).copy_(own_part(tensors[name]))
    return copies
