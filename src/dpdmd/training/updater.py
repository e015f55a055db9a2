"""How all weights are updated: mean gradient over micro-batches, clipped, one step of the optimiser."""

from collections.abc import Callable
from contextlib import nullcontext
from math import cos, isfinite, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpdmd.distributed.wrapping import full_tensor, without_exchange
from dpdmd.method.roles import Role
from dpdmd.recipe.plan import OptimiserPlan
from dpdmd.training.health import mean_of, on_cpu
from dpdmd.training.optimisers import new_optimiser
from dpdmd.training.updates import MicroLoss

# What has an optimiser: the trained roles, and the head of a discriminator.
Trained = Role | Literal["discriminator"]
BAD = "non_finite"  # of the log: 1 if any process has a loss or a gradient that is not finite


def rate_factor(step: int, plan: OptimiserPlan) -> float:
    """What both learning rates are multiplied by in the student update with `step` others before it.

    It rises linearly over the first w = warmup updates, (step + 1) / w, and then falls over the others with p, the
    share of them that is done: 1 (constant), 1 - p (linear), (1 + cos(pi p)) / 2 (cosine).
    """
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    p = min((step - plan.warmup) / max(plan.num_updates - plan.warmup, 1), 1.0)
    return {"constant": 1.0, "linear": 1 - p, "cosine": (1 + cos(pi * p)) / 2}[plan.schedule]


class Updater:
    """The optimiser of a role, or of the discriminator's head, with its parameters by name."""

    def __init__(
        self,
        role: Trained,
        network: nn.Module,
        parameters: dict[str, nn.Parameter],
        accelerator: Any,
        plan: OptimiserPlan,
        learning_rate: float,
    ):
        """network: with its wrapper for several processes, which exchange its gradients."""
        self.role, self.network, self.named_parameters, self.accelerator = role, network, parameters, accelerator
        self.parameters = list(parameters.values())
        self.plan, self.peak = plan, learning_rate
        self.optimizer = new_optimiser(self.parameters, plan, learning_rate)

    def update(self, step: int, micro_losses: list[Callable[[], MicroLoss]]) -> dict[str, float]:
        """Mean gradient over the micro-batches, clipped, one optimiser step; returns what to log.

        Raises FloatingPointError on every process, before any weight has changed, when a loss or the gradient of any
        process is not finite.
        """
        logs = []
        for i, micro_loss in enumerate(micro_losses):
            is_last = i + 1 == len(micro_losses)
            # Processes exchange gradients once per update, with the last micro-batch.
            with nullcontext() if is_last else without_exchange(self.network, self.accelerator):
                result = micro_loss()
                self.accelerator.backward(result.total / len(micro_losses))
            logs.append(result.log)
        norm = full_tensor(self.accelerator.clip_grad_norm_(self.parameters, self.plan.max_grad_norm))
        log = self._finite(step, mean_of([log | {f"grad_norm/{self.role}": norm} for log in logs]))
        rate = self.peak * rate_factor(step, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return log

    def _finite(self, step: int, log: dict[str, Tensor]) -> dict[str, float]:
        """The log as numbers; the only time in an update that the CPU waits for the device."""
        checked = [key for key in log if key.startswith(("loss/", "grad_norm/"))]
        bad = (~torch.stack([log[key] for key in checked]).isfinite()).any().float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, reduction="sum")
        row = on_cpu(log | {BAD: bad})
        if not row.pop(BAD):
            return row
        seen = ", ".join(f"{key} = {row[key]}" for key in checked if not isfinite(row[key])) or "on another process"
        self.optimizer.zero_grad(set_to_none=True)
        rates = "objective.adversarial.learning_rate"
        if self.role != "discriminator":
            rates = "train.learning_rate or train.fake_learning_rate"
        raise FloatingPointError(
            f"the {self.role} update of step {step + 1} is not finite ({seen}); its weights are unchanged and the last "
            f"checkpoint stays. Try a lower {rates}, a longer train.warmup, a smaller train.max_grad_norm, or "
            'train.precision = "fp32"'
        )
