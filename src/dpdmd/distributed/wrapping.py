"""Distribute networks over processes: replicate them in every process (DDP) or shard their parameters (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dpdmd.method.roles import ROLES, TRAINED_ROLES, Roles


def replicate(roles: Roles, accelerator: Accelerator) -> None:
    """Replicate every network in each process (DDP); gradients are averaged over the processes in every update."""
    roles.networks["teacher"].to(accelerator.device)
    wrapped: dict[int, nn.Module] = {}
    for role in TRAINED_ROLES:
        network = roles.networks[role]
        if id(network) not in wrapped:
            # Frozen weights are the same in all processes, and quantised ones cannot be broadcast.
            frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, frozen)
            wrapped[id(network)] = accelerator.prepare(network)
        roles.networks[role] = wrapped[id(network)]


def replicate_head(head: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Replicate a discriminator's head in each process (DDP), even if the networks of the roles are sharded."""
    return accelerator.prepare(head)


def shard(roles: Roles, accelerator: Accelerator, block_lists: tuple[str, ...]) -> None:
    """Shard the parameters of every network over the processes (FSDP2); a block is gathered when it is called.

    block_lists: names of the networks' attributes that hold their blocks.
    Raises ValueError if there is only one process.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "train.shard needs several processes, got one; start the run with torchrun --nproc-per-node=N, or remove "
            "train.shard"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in {id(roles.networks[role]): roles.networks[role] for role in ROLES}.values():
        network.to(accelerator.device)
        for name in block_lists:
            for block in getattr(network, name):
                fully_shard(block, mesh=mesh)
        # Reshard also after a call without a backward pass: optimiser and checkpoint expect sharded parameters.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
        unsharded = [name for name, parameter in network.named_parameters() if not isinstance(parameter, DTensor)]
        if unsharded:
            raise RuntimeError(f"these parameters were not sharded: {', '.join(unsharded[:3])}")


@contextmanager
def kept_gathered(network: nn.Module) -> Iterator[None]:
    """Context in which the parameters outside a sharded network's blocks stay gathered until the backward pass.

    FSDP2 gathers these parameters again when a backward pass reaches the network's output. A backward pass that starts
    at the output of a block gathers only the parameters of blocks, so without this context they would be missing.
    """
    sharded = cast(FSDPModule, network)  # `fully_shard` changes the class of a network
    sharded.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        sharded.set_reshard_after_forward(True, recurse=False)
        sharded.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; a collective for sharded tensors, which every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which every process has, in the same way as `like`, and move it to the device of `like`."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
