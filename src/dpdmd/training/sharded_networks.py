"""The networks of a run whose parameters are spread over processes (train.shard), without a whole one in any of them.

The networks are built on the meta device and sharded there. Then each process takes memory for its share and reads it
from the files: its peak is its share of all networks, and the tensor that is being read.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpdmd.distributed.processes import require_equal
from dpdmd.distributed.wrapping import fill, materialise, new_mesh, own_part, own_rows, shard
from dpdmd.method.roles import Role, Roles
from dpdmd.models.base import ModelAdapter
from dpdmd.models.load import load_sampler
from dpdmd.models.lora import lora_configs
from dpdmd.models.lora_start import read_lora, start_from
from dpdmd.models.role_networks import LoraAdapters, is_of_adapter, make_roles
from dpdmd.models.stored import beginnings, open_weights, require_fit, without_memory
from dpdmd.recipe.plan import Plan
from dpdmd.store.digests import fingerprint, tensors_digest

MAGNITUDE = ".lora_magnitude_vector"


def sharded_roles(
    plan: Plan, adapter: ModelAdapter, accelerator: Accelerator, *, prepare: Callable[[Roles], None]
) -> Roles:
    """Student, teacher and fake score, each process with its share of every network on its device.

    prepare: what is done to the networks before they are sharded. A student that starts from other whole weights
    (`student.start`) is the exception: every process reads all of these first.
    Raises ValueError in all processes when they read different weights, and for weights that do not fit.
    """
    mesh = new_mesh(accelerator, plan.compute.shard)
    named, part = adapter.source, f"{adapter.network_name} weights"
    dtype = torch.bfloat16 if plan.teacher.dtype == "bf16" else torch.float32
    with open_weights(adapter.network_files(), named, part) as stored:
        blank = adapter.blank_network()
        require_fit(blank, stored, named, part)
        start = load_start(plan, adapter, blank)
        require_equal({"teacher": beginnings(stored), "student.start": start and fingerprint(start)})
        configs = lora_configs(plan.lora, adapter, blank)
        with torch.device("meta"):  # adapters as well
            roles = make_roles(blank, lora=configs, frozen_dtype=dtype)
        prepare(roles)
        shard(roles, mesh, adapter.block_lists, in_bf16=plan.compute.in_bf16)
        for role, network in roles.modules.items():
            if role == "teacher" or network is not roles.modules["teacher"]:
                materialise(network, accelerator.device)
                fill(network, start.state_dict() if role == "student" and start is not None else stored)
    if configs:
        values = _adapter_values(plan, adapter, dtype)
        _start_adapters(roles.modules["teacher"], values)
    return roles


def load_start(plan: Plan, adapter: ModelAdapter, teacher: nn.Module) -> nn.Module | None:
    """The network whose weights a student starts from that trains all of its own; None: the teacher's, or a LoRA.

    Raises ValueError when names or shapes of its weights differ from the teacher's.
    """
    source = None if "student" in plan.lora.roles else plan.student.start
    if source is None:
        return None
    start = load_sampler(source, torch.float32).network
    mine, theirs = ({k: tuple(v.shape) for k, v in network.state_dict().items()} for network in (teacher, start))
    differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differ:
        raise ValueError(
            f"student.start: {source} does not fit the teacher {adapter.source}: {len(differ)} weights differ in name "
            f"or shape, the first is {differ[0]}"
        )
    return start


def _adapter_values(plan: Plan, adapter: ModelAdapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """What adapters begin with, by the network's names: drawn as on a whole network, or those of a LoRA to start from.

    They are made on a network whose weights take no memory. dtype: of the frozen weights, to which draws are rounded.
    """
    network, updates = without_memory(adapter.blank_network(), dtype), {}
    source = plan.student.start if "student" in plan.lora.roles else None
    if source:
        updates = read_lora(adapter, source)
        require_equal({"student.start": tensors_digest({name: update.up for name, update in updates.items()})})
    configs: dict[Role, object] = dict(lora_configs(plan.lora, adapter, network))
    LoraAdapters(network, configs, plan.data.seed)  # pyright: ignore[reportArgumentType]
    if source:
        start_from(network, updates, source)
    return {name: p.detach() for name, p in network.named_parameters() if is_of_adapter(name)}


@torch.no_grad()
def _start_adapters(network: nn.Module, values: dict[str, Tensor]) -> None:
    """Give the adapters of a sharded network their first values; of DoRA's magnitudes, the lengths of weight's rows."""
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        part = own_part(parameters[name])
        if not part.numel():
            continue
        if MAGNITUDE in name:
            weight = own_part(parameters[name.partition(MAGNITUDE)[0] + ".base_layer.weight"])
            part.copy_(torch.linalg.norm(weight, dim=1).to(weight.dtype))
        else:
            part.copy_(value[own_rows(parameters[name])])
