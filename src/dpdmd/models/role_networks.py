"""Student, teacher and fake score made from one pretrained network: as copies of it, or as LoRA adapters on it."""

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpdmd.method.randomness import generator
from dpdmd.method.roles import TRAINED_ROLES, Role, Roles
from dpdmd.models.base import network_blocks

MAX_GRAPHS = 64


def make_roles(
    teacher: nn.Module,
    start: nn.Module | None = None,
    *,
    lora: Mapping[Role, LoraConfig] | None = None,
    frozen_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Roles:
    """Student and fake score that start as the frozen teacher.

    A role in `lora` trains an adapter of that configuration on the teacher's own network; any other role trains all
    weights of a copy, the student of `start` if given. frozen_dtype: of the teacher's weights; what is trained stays in
    fp32. seed: of the adapters' first halves; their second halves are zero, so that every role starts as the teacher.
    """
    lora = lora or {}
    teacher.requires_grad_(False).eval()
    networks: dict[Role, nn.Module] = {"teacher": teacher}
    for role in TRAINED_ROLES:
        origin = start if role == "student" and start is not None else teacher
        networks[role] = teacher if role in lora else copy.deepcopy(origin).requires_grad_(True).train()
    if frozen_dtype != torch.float32:
        _cast(teacher, frozen_dtype)
    return Roles(networks, LoraAdapters(teacher, lora, seed) if lora else None)


class LoraAdapters:
    """One LoRA adapter per role on a network, in fp32; see `dpdmd.method.roles.Adapters`."""

    def __init__(self, network: nn.Module, lora: Mapping[Role, LoraConfig], seed: int):
        """Put an adapter of each configuration on `network`; none is active at first."""
        self.roles = frozenset(lora)
        for role, config in lora.items():
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
                warnings.filterwarnings("ignore", message=".*merge.* will raise")  # of quantised layers, never merged
                torch.manual_seed(generator(seed, f"lora_{role}").initial_seed())
                inject_adapter_in_model(config, network, adapter_name=role)
        self._layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
        for role in lora:
            for name, parameter in network.named_parameters():
                if self.own_name(name, role) is not None:
                    # peft makes an adapter in its layer's dtype, and freezes those made before it.
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
        self.activate(None)

    def activate(self, role: Role | None) -> None:
        """Compute with the adapter of `role`, or with none.

        peft's own switch would change requires_grad, which a backward pass between two switches does not survive.
        """
        for layer in self._layers:
            layer._disable_adapters = role is None
            layer._active_adapter = [] if role is None else [role]

    def own_name(self, name: str, role: Role) -> str | None:
        """The name of a parameter without its role, None when it is not in the adapter of `role`."""
        own = rf"\.{role}(?=\.|$)"
        return re.sub(own, "", name) if re.search(own, name) else None


def is_of_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's."""
    return ".lora_" in name


def enable_gradient_checkpointing(
    roles: Roles,
    block_lists: tuple[str, ...],
    number: int | None = None,
    wrapped: Callable[[Callable], Callable] = lambda block: block,
) -> None:
    """Recompute blocks of student and fake score in the backward pass instead of keeping their activations.

    number: how many of the first blocks in `block_lists`, attributes of a network; None: whatever can be recomputed. A
    block is recomputed with the adapter that was active in its forward pass. wrapped: what is called in its place.
    """
    networks = {id(roles.networks[role]): roles.networks[role] for role in TRAINED_ROLES}.values()
    firsts = [block for network in networks for block in network_blocks(network, block_lists)[:number]]
    # A network may call the checkpoint with parts of its blocks, as U-Nets do.
    recomputed = {id(part) for block in firsts for part in block.modules()}

    def run(block, *args):
        if number is not None and id(block) not in recomputed:
            return block(*args)
        switch = roles.as_now()
        return checkpoint(wrapped(block), *args, use_reentrant=False, context_fn=lambda: (nullcontext(), switch))

    for network in networks:
        cast("Any", network).enable_gradient_checkpointing(run)  # a diffusers model


def compile_blocks(roles: Roles, block_lists: tuple[str, ...]) -> None:
    """torch.compile every block of every network; `block_lists` names the attributes that hold them.

    Blocks of a kind share their graphs: one per role, batch size and whether gradients are recorded.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for network in {id(network): network for network in roles.networks.values()}.values():
        for block in network_blocks(network, block_lists):
            block.compile()


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters and buffers in another dtype; unlike `Module.to`, on tensors without data as well."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.data.to(dtype), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
