"""How a run is spread over processes: a copy of every network in each (DDP), or a share of it (FSDP2)."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dpdmd.roles import ROLES, TRAINED_ROLES, Roles


def new_accelerator() -> Accelerator:
    """The processes that `torchrun` or `accelerate launch` started, or this one alone."""
    # A rollout calls a network several times before one backward; synchronising its buffers at every call would change
    # in place what an earlier call needs for its gradient. Of adapters on one backbone an update uses one, and some
    # families have parameters that no output depends on.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), kwargs_handlers=[options])


def replicate(roles: Roles, accelerator: Accelerator) -> None:
    """Every process holds all of every network; gradients are averaged behind every update."""
    roles.networks["teacher"].to(accelerator.device)
    wrapped: dict[int, nn.Module] = {}
    for role in TRAINED_ROLES:
        network = roles.networks[role]
        if id(network) not in wrapped:
            wrapped[id(network)] = accelerator.prepare(network)
        roles.networks[role] = wrapped[id(network)]


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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_as(value: Tensor, like: Tensor) -> Tensor:
    """The whole `value`, which every process holds, spread over them as `like` is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
