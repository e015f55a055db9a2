"""Distribute networks over processes: replicate them in every process (DDP) or shard their parameters (FSDP2)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from dpdmd.distributed.environment import number_from
from dpdmd.distributed.processes import on_all_processes
from dpdmd.distributed.sharding import Sharding
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


def new_mesh(accelerator: Accelerator, sharding: Sharding) -> DeviceMesh:
    """The processes among which parameters are spread: all of them, or with "machine" those of one machine.

    With "machine" the mesh has two dimensions, (machine, process on it): shares within a machine, replicas across. The
    launcher says by LOCAL_WORLD_SIZE how many processes are on this one, and numbers those of a machine in a row.
    Raises ValueError in all processes if there are too few of them, or not equally many on each machine.
    """
    number, device = accelerator.num_processes, accelerator.device.type
    if number == 1:
        raise ValueError(
            "train.shard needs several processes, got one; start the run with torchrun --nproc-per-node=N, or remove "
            "train.shard"
        )
    if sharding != "machine":
        return init_device_mesh(device, (number,))
    local = on_all_processes(lambda: number_from("LOCAL_WORLD_SIZE"))
    if len(set(local)) > 1 or not 1 < local[0] < number or number % local[0]:
        raise ValueError(
            f'train.shard = "machine" needs at least two machines with equally many processes, at least two on each, '
            f"got {number} processes of which {', '.join(map(str, sorted(set(local))))} are on one; with one machine, "
            "or one process on each, train.shard = true"
        )
    return init_device_mesh(device, (number // local[0], local[0]), mesh_dim_names=("machine", "process"))


def shard(roles: Roles, mesh: DeviceMesh, block_lists: tuple[str, ...], *, in_bf16: bool = False) -> None:
    """Shard the parameters of every network over a mesh of processes (FSDP2); a block is gathered when it is called.

    The networks may be on the meta device: no memory is taken before `materialise`.
    block_lists: names of the networks' attributes that hold their blocks. in_bf16: parameters are gathered in bf16, in
    which autocast computes with them anyway; gradients are reduced in fp32, and inputs are left as they are, since a
    time rounded to bf16 is another time.
    """
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if in_bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for network in {id(roles.networks[role]): roles.networks[role] for role in ROLES}.values():
        for name in block_lists:
            for block in getattr(network, name):
                fully_shard(block, mesh=mesh, mp_policy=precision)
        # Reshard also after a call without a backward pass: optimiser and checkpoint expect sharded parameters.
        fully_shard(network, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        unsharded = [name for name, parameter in network.named_parameters() if not isinstance(parameter, DTensor)]
        if unsharded:
            raise RuntimeError(f"these parameters were not sharded: {', '.join(unsharded[:3])}")


def materialise(network: nn.Module, device: torch.device) -> None:
    """Take memory on `device` for what is on the meta device, without values; move all else, such as tables, there."""
    network._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))


@torch.no_grad()
def fill(network: nn.Module, stored: Mapping[str, Any]) -> None:
    """Copy into a network what this process holds of each tensor in `stored`, and read no more than that.

    stored: tensors or slices of safetensors files, by the names of the network without adapters. It may lack some.
    """
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if (own := name.replace(".base_layer.", ".")) in stored and own_part(tensor).numel():
            own_part(tensor).copy_(stored[own][own_rows(tensor)])


@contextmanager
def without_exchange(network: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Context of a backward pass that only adds to the gradients of this process; the next one exchanges the sum.

    A sharded network then holds the gradient of all its trained parameters in each process until they are exchanged.
    """
    if not isinstance(network, FSDPModule):
        with accelerator.no_sync(network):
            yield
        return
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


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


def own_rows(tensor: Tensor) -> slice | EllipsisType:
    """The rows of the whole tensor that this process holds, as `torch.chunk` divides them; `...`: all."""
    if isinstance(tensor, DTensor):
        for dimension, placement in enumerate(tensor.placements):
            if isinstance(placement, Shard):
                number, place = tensor.device_mesh.size(dimension), tensor.device_mesh.get_local_rank(dimension)
                size = -(-len(tensor) // number)
                return slice(min(place * size, len(tensor)), min((place + 1) * size, len(tensor)))
    return ...


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
