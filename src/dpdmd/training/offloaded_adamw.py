"""AdamW whose moments stay in the CPU's memory: `train.optimiser = "adamw_offloaded"`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from dpdmd.method.devices import to_device

MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """torch's fused AdamW. The moments of one weight at a time are on its device: they are copied there for its step,
    and back.

    The same kernel computes on the same device, so that weights and moments are those of AdamW to the bit.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of every weight that has a gradient; returns when all moments are back in the CPU's memory."""
        devices = set()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
                    devices.add(parameter.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()  # a checkpoint reads them on the CPU

    def _step(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= {key: torch.zeros_like(self.blank(parameter)) for key in MOMENTS}
        first, second = moments = [to_device(state[key], parameter.device) for key in MOMENTS]
        beta1, beta2 = group["betas"]
        adamw(
            [parameter],
            [gradient],
            [first],
            [second],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for key, moment in zip(MOMENTS, moments, strict=True):
            state[key].copy_(moment, non_blocking=True)

    @staticmethod
    def blank(parameter: Tensor) -> Tensor:
        """Memory of the CPU for a moment of a weight; pinned where a GPU copies from it and to it."""
        return torch.empty_like(parameter, device="cpu", pin_memory=parameter.device.type == "cuda")
