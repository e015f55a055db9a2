"""Who plays which part: student, teacher and fake score, and which weights each owns.

`Roles.use(role)` is the one way to a network. Roles that train LoRA adapters share the teacher's frozen backbone:
there, entering a role makes its adapter the active one, and the teacher is the backbone with all adapters off.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpdmd.method.randomness import generator

if TYPE_CHECKING:
    from peft import LoraConfig

Role = Literal["student", "teacher", "fake_score"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake_score")
TRAINED_ROLES: tuple[Role, ...] = ("student", "fake_score")
MAX_GRAPHS = 64


class Roles:
    """Student and fake score start as the frozen teacher: as copies of it, or as LoRA adapters on it.

    A role in `lora` trains an adapter of that configuration on the teacher's own network; any other one trains all
    weights of a copy, the student of `start` if given.

    networks: what is called for each role, which roles with adapters have in common with the teacher; it may be wrapped
    for several processes. modules: the same networks as they are. num_calls: how often any was entered so far.
    """

    def __init__(
        self,
        teacher: nn.Module,
        start: nn.Module | None = None,
        *,
        lora: Mapping[Role, "LoraConfig"] | None = None,
        frozen_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        """`frozen_dtype`: of the teacher's weights; what is trained stays in fp32.

        `seed`: of the adapters' first halves; their second halves are zero, so that every role starts as the teacher.
        """
        lora = lora or {}
        teacher.requires_grad_(False).eval()
        self.networks: dict[Role, nn.Module] = {"teacher": teacher}
        for role in TRAINED_ROLES:
            origin = start if role == "student" and start is not None else teacher
            is_copy = role not in lora
            self.networks[role] = copy.deepcopy(origin).requires_grad_(True).train() if is_copy else teacher
        if frozen_dtype != torch.float32:
            _cast(teacher, frozen_dtype)
        self.adapters = frozenset(lora)
        self._layers = _add_adapters(teacher, lora, seed) if lora else []
        self.modules = dict(self.networks)
        self.num_calls = 0
        for role in lora:
            # An adapter is made in its layer's dtype, and freezes those before it.
            for parameter in self.parameters(role).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        self._activate("teacher")

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        """Yield the network that plays `role`. Raises KeyError for an unknown role."""
        self.num_calls += 1
        with self._as(role):
            yield self.networks[role]

    def parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """What an update of `role` changes, by name; nothing for the teacher.

        In the names of an adapter's parameters its own name is left out.
        """
        return dict(self._named_parameters(role))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks of student and fake score in the backward pass instead of keeping their activations."""
        for network in {id(self.networks[role]): self.networks[role] for role in TRAINED_ROLES}.values():
            network.enable_gradient_checkpointing(self._checkpointed)

    def compile_blocks(self, block_lists: tuple[str, ...]) -> None:
        """torch.compile every block of every network, `block_lists` naming the attributes that hold them.

        Blocks of a kind share their graphs: one per role, batch size and whether gradients are recorded.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
        for network in {id(network): network for network in self.networks.values()}.values():
            for name in block_lists:
                for block in getattr(network, name):
                    block.compile()

    def _checkpointed(self, block, *args):
        """Run a block so that it is recomputed with the adapter which is active now."""
        role = self._active
        return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self._as(role)))

    def _as(self, role: Role) -> "_Switch":
        return _Switch(self, role if role in self.adapters or role == "teacher" else None)

    def _activate(self, role: Role) -> None:
        """Compute with the adapter of `role`, or with none for the teacher.

        peft's own switch would change requires_grad, which a backward pass between two switches does not survive.
        """
        self._active = role
        for layer in self._layers:
            layer._disable_adapters = role == "teacher"
            layer._active_adapter = [] if role == "teacher" else [role]

    def _named_parameters(self, role: Role) -> Iterator[tuple[str, nn.Parameter]]:
        if role == "teacher":
            return
        for name, parameter in self.modules[role].named_parameters():
            if role not in self.adapters:
                yield name, parameter
            elif re.search(own := rf"\.{role}(?=\.|$)", name):
                yield re.sub(own, "", name), parameter


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters and buffers in another dtype; unlike `Module.to`, on tensors without data as well."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.data.to(dtype), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))


def _add_adapters(network: nn.Module, lora: Mapping[Role, "LoraConfig"], seed: int) -> list[nn.Module]:
    """Put one adapter per role on the network; returns the layers that have them."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for role, config in lora.items():
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
            warnings.filterwarnings("ignore", message=".*merge.* will raise")  # of quantised layers, never merged
            torch.manual_seed(generator(seed, f"lora_{role}").initial_seed())
            inject_adapter_in_model(config, network, adapter_name=role)
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


class _Switch:
    """Within it an adapter is active on the backbone, behind it the one before; None leaves the backbone alone.

    A checkpointed block enters it again for every backward pass through it.
    """

    def __init__(self, roles: Roles, role: Role | None):
        self.roles, self.role = roles, role
        self.before: list[Role] = []

    def __enter__(self) -> None:
        self.before.append(self.roles._active)
        if self.role is not None and self.role != self.roles._active:
            self.roles._activate(self.role)

    def __exit__(self, *error) -> None:
        before = self.before.pop()
        if before != self.roles._active:
            self.roles._activate(before)
