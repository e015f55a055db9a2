"""Guidance that is rescaled to the length of the conditional prediction, which several stock pipelines do."""

import torch
from torch import Tensor


def guided_to_length(cond: Tensor, uncond: Tensor, scale: float, *, longest: float | None = None) -> Tensor:
    """w |c| / |w| with w = u + s (c - u), where the length is that of each vector in the last axis.

    cond, uncond: velocities c and u. scale: s. longest: the largest factor |c| / |w|; None: any. A vector w of zeros
    stays zero.
    """
    guided = uncond + scale * (cond - uncond)
    factor = _length(cond) / _length(guided).clamp_min(torch.finfo(guided.dtype).tiny)
    return guided * (factor if longest is None else factor.clamp(max=longest))


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis, which is kept: (..., D) to (..., 1)."""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
