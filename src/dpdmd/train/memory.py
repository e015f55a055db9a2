"""What a student update needs at its peak, found by going through one on tensors without data.

torch's FakeTensorMode computes shapes and no numbers, so that a network of any size runs in seconds and in no memory;
`LiveBytes` counts what is alive at any moment, as an allocator without fragmentation would.
"""

import weakref
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from dpdmd.denoiser import Condition, concatenate
from dpdmd.models.base import ModelAdapter, empty_network, feature_reader
from dpdmd.models.base import denoiser as role_denoiser
from dpdmd.models.lora import lora_configs
from dpdmd.roles import Role, Roles
from dpdmd.rollout import student_rollout
from dpdmd.train.config import Recipe
from dpdmd.train.plan import Plan


class LiveBytes(TorchDispatchMode):
    """Within it `peak` is the largest number of bytes that tensors made within it have held at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        # What comes in was there before, also where an operation writes into it and returns it.
        tree_map_only(Tensor, self._know, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _know(self, tensor: Tensor) -> None:
        self._seen.setdefault(tensor.untyped_storage(), True)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def peak_bytes(recipe: Recipe, plan: Plan, adapter: ModelAdapter) -> int | None:
    """Activations and gradients of one micro-batch of the student update, at their peak, on the main device.

    The rollout with its graph, a guided call of the teacher beside it, or a discriminator's features with their own
    graph, then the backward pass. Optimiser, weights and text encoders are not in it. None for families whose networks
    read numbers out of their input (Z-Image).
    """
    network = empty_network(adapter)
    configs = lora_configs(recipe.lora, adapter, network)
    frozen = torch.bfloat16 if recipe.model.dtype == "bf16" else torch.float32
    with init_empty_weights():
        roles = Roles(network, lora=configs, frozen_dtype=frozen)
    if recipe.train.gradient_checkpointing:
        roles.enable_gradient_checkpointing()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            for network in roles.modules.values():
                _without_data(network)
            return _peak(recipe, plan, adapter, roles)
    except DataDependentOutputException:
        return None


def _without_data(network: nn.Module) -> None:
    """Replace parameters of the meta device by such of the main one that have no data either."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            blank = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(blank, requires_grad=parameter.requires_grad))


def _peak(recipe: Recipe, plan: Plan, adapter: ModelAdapter, roles: Roles) -> int:
    size = recipe.train.batch_size
    cond, uncond = adapter.blank_condition(size), adapter.blank_condition(size)
    noise = torch.randn(size, *plan.latent_shape)
    renoise = {} if recipe.student.kind == "ode" else {"fresh_noise": lambda i: torch.randn_like(noise)}

    def denoise(role: Role, x_t: Tensor, t: Tensor, condition: Condition):
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            return role_denoiser(adapter, roles, role, plan.embedded_guidance[role])(x_t, t, condition)

    def teach() -> None:
        """The largest call without graph: guided, both halves at once."""
        times = plan.teacher_grid.time(0, noise)
        copies = 2 if plan.guidance_scale > 1 else 1
        both = concatenate([cond, uncond][:copies])
        denoise("teacher", noise.repeat(copies, 1, 1, 1), times.repeat(copies), both)

    def look(x0: Tensor) -> None:
        """The adversarial term: features with a graph of their own, normalised as its head does, and back to x0."""
        role, x_t = recipe.objective.adversarial.features, x0.detach().requires_grad_()
        read = feature_reader(adapter, roles, role, plan.feature_blocks, plan.embedded_guidance[role])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            features = [f.float() for f in read(x_t, plan.student_grid.time(0, x_t), cond)]
        torch.autograd.grad(sum(F.layer_norm(f, f.shape[-1:]).square().mean() for f in features), x_t)

    with torch.no_grad():  # tables that a network makes at its first call stay and are small
        denoise("student", noise, plan.student_grid.time(0, noise), cond)
        teach()
    with LiveBytes() as live:
        rollout = student_rollout(
            lambda *inputs: denoise("student", *inputs),
            adapter.path,
            noise,
            cond,
            grid=plan.student_grid,
            detach_after=plan.objective.detach_after,
            num_steps=plan.student_grid.num_steps if recipe.train.random_step else None,
            **renoise,
        )
        with torch.no_grad():
            teach()
        if plan.feature_blocks:
            look(rollout.x0)
        (rollout.x0.mean() + sum(prediction.x0.mean() for prediction in rollout.predictions)).backward()
    return live.peak
