"""How networks are spread over processes: a copy of each in every process (DDP), or a share of it (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dpdmd.method.roles import ROLES, TRAINED_ROLES, Roles


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
