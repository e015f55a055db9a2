"""How a run is spread over processes: a copy of every network in each (DDP), or a share of it (FSDP2)."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dpdmd.roles import ROLES, TRAINED_ROLES, Roles

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


def fingerprint(network: nn.Module) -> str:
    """A hash of the beginnings of all parameters, by which to tell another model from this one."""
    beginnings = torch.cat([parameter.detach().flatten()[:16].float() for parameter in network.parameters()])
    return hashlib.sha256(beginnings.cpu().numpy().tobytes()).hexdigest()[:16]


def replicate(roles: Roles, accelerator: Accelerator) -> None:
    """Every process holds all of every network; gradients are averaged behind every update."""
    roles.networks["teacher"].to(accelerator.device)
    wrapped: dict[int, nn.Module] = {}
    for role in TRAINED_ROLES:
        network = roles.networks[role]
        if id(network) not in wrapped:
            # Frozen weights are everywhere the same, and quantised ones could not be sent.
            frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, frozen)
            wrapped[id(network)] = accelerator.prepare(network)
        roles.networks[role] = wrapped[id(network)]


def replicate_head(head: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Every process holds all of a module beside the roles' networks, also where those are shared out."""
    return accelerator.prepare(head)


def shard(roles: Roles, accelerator: Accelerator, block_lists: tuple[str, ...]) -> None:
    """Every process holds its share of every network's parameters, and gathers a block's when it computes with it.

    block_lists: the networks' attributes that hold their blocks. Raises ValueError with one process only.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "train.shard spreads networks over processes, and this is one: start it by torchrun --nproc-per-node=N, or "
            "leave train.shard out"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in {id(roles.networks[role]): roles.networks[role] for role in ROLES}.values():
        network.to(accelerator.device)
        for name in block_lists:
            for block in getattr(network, name):
                fully_shard(block, mesh=mesh)
        # Not kept whole after a call without backward pass either: optimiser and checkpoint know the shares.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
        whole_ones = [name for name, parameter in network.named_parameters() if not isinstance(parameter, DTensor)]
        if whole_ones:
            raise RuntimeError(f"these parameters were not sharded: {', '.join(whole_ones[:3])}")


@contextmanager
def kept_gathered(network: nn.Module) -> Iterator[None]:
    """Within it a sharded network's parameters outside of its blocks stay gathered from a call to its backward pass.

    FSDP2 gathers them again when a backward pass comes to the network's output; one from a block's output, which
    gathers that block's own, never does.
    """
    network.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        network.set_reshard_after_forward(True, recurse=False)
        network.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_as(value: Tensor, like: Tensor) -> Tensor:
    """The whole `value`, which every process holds, spread over them as `like` is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
