"""The processes of a run: starting them, and the operations in which all of them take part (collectives)."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env

from dpdmd.distributed.environment import number_from, require_neutral_environment

T = TypeVar("T")

# Environment variables in which launchers (torchrun, a Slurm step, Open MPI) report the number of started processes.
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def new_accelerator() -> Accelerator:
    """Create an Accelerator for the processes started by `torchrun` or `accelerate launch`, or for a single process.

    Raises ValueError if the environment would change what is computed, if there are fewer GPUs than processes on this
    machine, or if a launcher has started more processes than are connected.
    """
    require_neutral_environment()
    on_this_machine = number_from("LOCAL_WORLD_SIZE")
    uses_gpus = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if uses_gpus and on_this_machine > torch.cuda.device_count():
        raise ValueError(
            f"{on_this_machine} processes were started on {socket.gethostname()}, where torch finds "
            f"{torch.cuda.device_count()} GPUs; each process needs its own GPU, so lower torchrun --nproc-per-node=N"
        )
    # broadcast_buffers: a rollout calls a network several times before one backward pass. Synchronising the buffers in
    # every call would modify in place what earlier calls need for their gradients.
    # find_unused_parameters: an update uses only one of the adapters on a backbone, and some families have parameters
    # on which no output depends.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    # The other processes wait while the main process encodes prompts, longer than the default of ten minutes.
    process_group = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(
        mixed_precision="no", cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp, process_group]
    )
    for name in WORLD_SIZE_VARIABLES:
        if number_from(name) > accelerator.num_processes:
            raise ValueError(
                f"{name} says that {os.environ[name]} processes were started, but only {accelerator.num_processes} "
                f"of them are connected; start them with torchrun, or unset {name}"
            )
    return accelerator


def device_name(device: torch.device) -> str:
    """The name of a device for messages and logs; for the CPU it says if torch cannot use a GPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    was_asked = torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ
    is_unseen = not was_asked and any(Path("/dev").glob("nvidia[0-9]*"))
    return "the CPU" + (", although the machine has a GPU: torch cannot use it" if is_unseen else "")


def rank_and_world_size() -> tuple[int, int]:
    """The index of this process, from 0, and the number of processes; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def on_all_processes(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run `action` in every process and gather its results, ordered by rank, in all of them.

    This is a collective: every process must call it, and waits for all others. group: of all processes, for what runs
    beside other collectives; by default the one that these use.
    Raises OSError in all processes if `action` raised it in any, so that no process waits for one that has failed.
    """
    if not dist.is_initialized():
        return [action()]
    result = error = None
    try:
        result = action()
    except OSError as caught:
        error = caught
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, (result, error and str(error)), group=group)
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(rows):
        if message is not None:
            raise OSError(f"process {rank}: {message}")
    return [result for result, _ in rows]


def on_main_process(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run `action` in the main process (rank 0) only, and return its result in every process.

    This is a collective: every process must call it and waits for the main process. Raises in all processes an OSError
    that `action` raised.
    """
    results = on_all_processes(lambda: action() if rank_and_world_size()[0] == 0 else None, group)
    return cast(T, results[0])  # None comes from the others alone


def require_equal(facts: dict[str, Any]) -> None:
    """Check that all processes have the same facts, {name: value}; a collective.

    Raises ValueError in all processes, naming the first fact that differs.
    """
    rows = on_all_processes(lambda: (socket.gethostname(), facts))
    for name, value in rows[0][1].items():
        for rank, (host, theirs) in enumerate(rows):
            if theirs[name] != value:
                raise ValueError(
                    f"the processes differ in {name}: {value!r} on process 0 ({rows[0][0]}), {theirs[name]!r} on "
                    f"process {rank} ({host}); start all of them with the same command, files and versions"
                )
