"""The optimisers that `train.optimiser` names, and their state as tensors that a checkpoint stores and restores."""

from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.recipe.optimisers import missing_optimiser
from dpdmd.recipe.plan import OptimiserPlan
from dpdmd.training.offloaded_adamw import MOMENTS, OffloadedAdamW
from dpdmd.training.run.checkpoint import Checkpoint

STEP = "step"


def new_optimiser(parameters: list[nn.Parameter], plan: OptimiserPlan, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of some parameters: AdamW, with moments in the CPU's memory or (bitsandbytes') in 8 bits, or
    torch's Adafactor.

    Raises ValueError if a package is missing.
    """
    if plan.optimiser == "adafactor":
        # foreach would take memory for a factor of every parameter at a time.
        return torch.optim.Adafactor(parameters, lr=learning_rate, weight_decay=plan.weight_decay, foreach=False)
    if plan.optimiser == "adamw_8bit":
        if (missing := missing_optimiser(plan.optimiser)) is not None:
            raise ValueError(missing)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
    kind = OffloadedAdamW if plan.optimiser == "adamw_offloaded" else torch.optim.AdamW
    return kind(parameters, lr=learning_rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, "exp_avg/<parameter name>" and so on; empty before its first step.

    Moments in 8 bits are stored as they are: their codes, scales and code books. A whole number becomes a tensor.
    """
    return {
        f"{key}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], checkpoint: Checkpoint, name: str
) -> None:
    """Restore the `optimizer_tensors` that `checkpoint` stores as `name`; every process must call this.

    Raises ValueError when it belongs to another network or optimiser.
    """
    optimizer.state.clear()
    blanks: dict[str, Tensor] = {}
    for flat, (shape, dtype) in checkpoint.described(name).items():
        key, _, owner = flat.partition("/")
        if owner not in parameters:
            raise ValueError(f"the stored optimiser state has {owner!r}, which the network has not")
        parameter = parameters[owner].detach()
        # Moments are sharded like their parameter. Steps are scalars, which fused AdamW keeps on the same device.
        if isinstance(optimizer, OffloadedAdamW) and key in MOMENTS:
            blanks[flat] = optimizer.blank(parameter)
            continue
        is_like = shape == parameter.shape
        options: dict[str, Any] = {"dtype": dtype, "device": parameter.device}
        blanks[flat] = torch.empty_like(parameter, **options) if is_like else torch.empty(shape, **options)
    checkpoint.load(name, blanks)
    for flat, value in blanks.items():
        key, _, owner = flat.partition("/")
        is_count = key == STEP and not value.is_floating_point()
        optimizer.state[parameters[owner]][key] = value.item() if is_count else value
