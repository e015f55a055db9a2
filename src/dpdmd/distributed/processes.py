"""How a run is spread over processes: a copy of every network in each (DDP), or a share of it (FSDP2)."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env

T = TypeVar("T")

# Where launchers (torchrun, a step of Slurm's, Open MPI) say how many processes they have started.
STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def new_accelerator() -> Accelerator:
    """The processes that `torchrun` or `accelerate launch` started, or this one alone.

    Raises ValueError when a launcher has started more processes than know of each other, or than there are GPUs.
    """
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    uses_gpus = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if uses_gpus and on_this_machine > torch.cuda.device_count():
        raise ValueError(
            f"{on_this_machine} processes were started on {socket.gethostname()}, where torch sees "
            f"{torch.cuda.device_count()} GPUs: give torchrun --nproc-per-node=N a GPU for each process"
        )
    # A rollout calls a network several times before one backward; synchronising its buffers at every call would change
    # in place what an earlier call needs for its gradient. Of adapters on one backbone an update uses one, and some
    # families have parameters that no output depends on.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    # The others wait while the first process encodes prompts: for longer than the default of ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(
        mixed_precision="no", cpu=not torch.cuda.is_available(), kwargs_handlers=[options, patience]
    )
    for name in STARTED:
        if int(os.environ.get(name) or 1) > accelerator.num_processes:
            raise ValueError(
                f"{name} says that {os.environ[name]} processes were started, but this one knows of "
                f"{accelerator.num_processes}: start them by torchrun, or unset {name}"
            )
    return accelerator


def device_name(device: torch.device) -> str:
    """What a run is on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    was_asked = torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ
    is_unseen = not was_asked and any(Path("/dev").glob("nvidia[0-9]*"))
    return "the CPU" + (", although the machine has a GPU: torch cannot use it" if is_unseen else "")


def rank_and_number() -> tuple[int, int]:
    """Which process this is, counted from 0, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def everywhere(action: Callable[[], T]) -> list[T]:
    """What `action` returns in every process, in their order; all wait for all of them.

    Raises OSError in all processes when it was raised in any, so that none waits for one that has given up.
    """
    if not dist.is_initialized():
        return [action()]
    result = error = None
    try:
        result = action()
    except OSError as caught:
        error = caught
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, (result, error and str(error)))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(rows):
        if message is not None:
            raise OSError(f"process {rank}: {message}")
    return [result for result, _ in rows]


def on_first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, which alone does it; all wait for it, and all raise its OSError."""
    return everywhere(lambda: action() if rank_and_number()[0] == 0 else None)[0]


def require_equal(facts: dict[str, Any]) -> None:
    """Raises ValueError in all processes, naming the first fact that is not the same in all of them."""
    rows = everywhere(lambda: (socket.gethostname(), facts))
    for name, value in rows[0][1].items():
        for rank, (host, theirs) in enumerate(rows):
            if theirs[name] != value:
                raise ValueError(
                    f"the processes differ in {name}: {value!r} on process 0 ({rows[0][0]}), {theirs[name]!r} on "
                    f"process {rank} ({host}); start all with the same command, files and versions"
                )
