"""The velocity that an ideal network predicts: a world of finitely many drawings has it in closed form."""

import torch
from torch import Tensor


def posterior_mean(x_t: Tensor, alpha: Tensor, sigma: Tensor, latents: Tensor, member: Tensor) -> Tensor:
    """E[x_0 | x_t], with a prompt's drawings equally likely: sum_i w_i x_i, (B, C, H, W).

        w = softmax_i(-|x_t - alpha x_i|^2 / (2 sigma^2)),    over the drawings i that the prompt may mean

    x_t: (B, C, H, W). alpha, sigma: (B,), sigma > 0. latents: x_i, (N, C, H, W). member: (B, N) bool, at least one True
    in each row.
    """
    flat, alpha, sigma = latents.flatten(1), alpha[:, None], sigma[:, None]
    # |x_t|^2 is left out: it is the same for all drawings.
    logits = alpha * (x_t.flatten(1) @ flat.T - alpha * flat.square().sum(1) / 2) / sigma.square()
    weights = logits.masked_fill(~member, -torch.inf).softmax(1)
    return (weights @ flat).view_as(x_t)


def exact_velocity(x_t: Tensor, alpha: Tensor, sigma: Tensor, latents: Tensor, member: Tensor) -> Tensor:
    """E[eps - x_0 | x_t] = (x_t - alpha E[x_0 | x_t]) / sigma - E[x_0 | x_t], the prediction of least loss.

    Arguments as of `posterior_mean`.
    """
    x0 = posterior_mean(x_t, alpha, sigma, latents, member)
    alpha, sigma = (value.view(-1, *[1] * (x_t.ndim - 1)) for value in (alpha, sigma))
    return (x_t - alpha * x0) / sigma - x0
