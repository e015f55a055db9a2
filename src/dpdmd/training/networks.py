"""Load the networks of a run, compare them between processes, assign their roles, and replicate or shard them."""

import os
import shutil
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpdmd.distributed.processes import require_equal
from dpdmd.distributed.wrapping import replicate
from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.paths import Prediction
from dpdmd.method.roles import TRAINED_ROLES, Role, Roles
from dpdmd.models.base import ModelAdapter, denoiser
from dpdmd.models.lora import lora_configs
from dpdmd.models.lora_start import read_lora, start_from
from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.models.quantised import quantise
from dpdmd.models.role_networks import compile_blocks, enable_gradient_checkpointing, make_roles
from dpdmd.recipe.plan import Plan
from dpdmd.store.digests import fingerprint, tensors_digest
from dpdmd.training.sharded_networks import load_start, sharded_roles


def require_compiler() -> None:
    """Raises ValueError where there is no C++ compiler for train.compile: torch would ask for it hours later."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise ValueError(
            f"train.compile needs a C++ compiler, and there is no {compiler}: install one, name it by the environment "
            "variable CXX, or set train.compile = false"
        )


def load_networks(plan: Plan, adapter: ModelAdapter) -> tuple[nn.Module, nn.Module | None]:
    """The teacher's network, and the network that the student starts from (None: the teacher's, or a LoRA).

    Raises ValueError when the names or shapes of their weights differ.
    """
    # Weights that stay frozen need not be loaded in fp32.
    is_frozen = plan.teacher.dtype != "fp32" and set(plan.lora.roles) == set(TRAINED_ROLES)
    teacher = adapter.load_network(torch.bfloat16) if is_frozen else adapter.load_network()
    return teacher, load_start(plan, adapter, teacher)


def new_roles(plan: Plan, adapter: ModelAdapter, accelerator: Accelerator) -> Roles:
    """Student, teacher and fake score on this process's device, replicated or sharded over the processes.

    Raises ValueError in all processes when they read different weights.
    """
    if plan.compute.shard:
        return sharded_roles(plan, adapter, accelerator, prepare=partial(_prepare, plan, adapter))
    teacher, start = load_networks(plan, adapter)
    updates = {}
    if plan.student.start and "student" in plan.lora.roles:
        updates = read_lora(adapter, plan.student.start)
        require_equal({"student.start": tensors_digest({name: update.up for name, update in updates.items()})})
    require_equal({name: fingerprint(n) for name, n in {"teacher": teacher, "student.start": start}.items() if n})
    dtype = plan.teacher.dtype
    if dtype in QUANTISED:
        quantise(teacher, dtype, adapter.block_lists, accelerator.device)
    roles = make_roles(
        teacher,
        start,
        lora=lora_configs(plan.lora, adapter, teacher),
        frozen_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
        seed=plan.data.seed,
    )
    if updates and plan.student.start:
        start_from(roles.modules["student"], updates, plan.student.start)
    _prepare(plan, adapter, roles)
    replicate(roles, accelerator)
    return roles


def _prepare(plan: Plan, adapter: ModelAdapter, roles: Roles) -> None:
    """Recompute and compile blocks as the plan says, before the networks are wrapped for several processes."""
    if plan.compute.recomputes:
        enable_gradient_checkpointing(roles, adapter.block_lists, plan.compute.num_recomputed)
    if plan.compute.compile:
        compile_blocks(roles, adapter.block_lists)


def role_denoiser(plan: Plan, adapter: ModelAdapter, roles: Roles, role: Role) -> Denoiser:
    """The role's denoiser; in bf16 only the network call is autocast, and its prediction is fp32."""
    denoise = denoiser(adapter, roles, role, plan.embedded_guidance[role])
    if not plan.compute.in_bf16:
        return denoise

    def in_bf16(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16):
            return denoise(x_t, t, cond)

    return in_bf16
