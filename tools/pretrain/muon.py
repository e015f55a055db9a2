"""Muon in fp32, for matrices and for convolutions as matrices; torch's own works in bf16, which is slow on a CPU."""

import torch
from torch import Tensor

# The quintic iteration of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS, NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalised(gradients: Tensor) -> Tensor:
    """Matrices (N, m, n) with singular values moved to about 1, by the Newton-Schulz iteration.

    Every iterate is a polynomial of X X^T times X: all products but the first and the last are of (m, m), m <= n.
    """
    a, b, c = COEFFICIENTS
    tall = gradients.shape[1] > gradients.shape[2]
    x = gradients.mT if tall else gradients
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    gram, identity = x @ x.mT, torch.eye(x.shape[1])
    factor = identity
    for _ in range(NUM_ITERATIONS):
        step = a * identity + b * gram + c * gram @ gram
        factor, gram = step @ factor, step @ gram @ step
    x = factor @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; weights of more than two dimensions are matrices of shape (out, rest).

    The update has the size of AdamW's: it is scaled by 0.2 sqrt(max(m, n)) (arXiv 2502.16982), so that learning rates
    of the two compare.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step; matrices of one shape are orthogonalised together."""
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault((len(weight), weight[0].numel()), []).append(weight)
            for shape, weights in by_shape.items():
                self._step_of_shape(shape, weights, group)

    def _step_of_shape(self, shape: tuple[int, int], weights: list[Tensor], group: dict) -> None:
        momentum, gradients = group["momentum"], [weight.grad for weight in weights]
        means = [self.state[weight].setdefault("mean", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, means, momentum)
        directions = orthogonalised(torch.stack([update.reshape(shape) for update in nesterov]))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        step = -group["lr"] * 0.2 * max(shape) ** 0.5
        torch._foreach_add_(weights, [d.view(w.shape) for d, w in zip(directions, weights, strict=True)], alpha=step)


def muon_and_adamw(
    module: torch.nn.Module, muon_rate: float, adam_rate: float, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """Muon for all matrices and convolutions with more than 16 rows and columns, AdamW for all other weights."""
    matrices, others = [], []
    for parameter in module.parameters():
        is_matrix = parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) > 16
        (matrices if is_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=muon_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=adam_rate, weight_decay=weight_decay, betas=(0.9, 0.99)),
    ]
