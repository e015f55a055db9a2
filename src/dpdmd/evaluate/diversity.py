"""Diversity of the samples of one prompt, from their features."""

import torch
from torch import Tensor


def pairwise_diversity(features: Tensor) -> Tensor:
    """1 - mean cosine over the R (R - 1) / 2 pairs of samples of each prompt.

        D = 1 - 2 / (R (R - 1)) sum_{i < j} <f_i, f_j>,   f L2-normalised

    features: (P, R, D) of P prompts with R samples each. Returns (P,) fp64; 0: all samples alike, 1: orthogonal.
    Raises ValueError when R < 2 or a feature vector is zero or not finite.
    Source: arXiv 2602.03139, section on metrics.
    """
    unit = _unit(features)
    num_samples = features.shape[1]
    # |sum f|^2 = R + sum over ordered pairs of <f_i, f_j>: no R x R matrix is needed.
    pairs = unit.sum(dim=1).square().sum(dim=-1) - unit.square().sum(dim=(1, 2))
    return 1 - pairs / (num_samples * (num_samples - 1))


def vendi_score(features: Tensor) -> Tensor:
    """Effective number of different samples of each prompt, between 1 and R.

        V = exp(-sum_k l_k log l_k),   l the eigenvalues of the cosine kernel / R

    features: (P, R, D). Returns (P,) fp64. Raises like `pairwise_diversity`. Source: arXiv 2210.02410.
    """
    unit = _unit(features)
    kernel = unit @ unit.transpose(1, 2) / features.shape[1]
    eigenvalues = torch.linalg.eigvalsh(kernel).clamp(min=0)
    return torch.exp(-torch.special.xlogy(eigenvalues, eigenvalues).sum(dim=-1))


def _unit(features: Tensor) -> Tensor:
    if features.ndim != 3:
        raise ValueError(f"features must be (prompts, samples, dimensions), got {tuple(features.shape)}")
    if features.shape[1] < 2:
        raise ValueError(f"diversity needs at least 2 images per prompt, got {features.shape[1]}")
    features = features.double()
    norm = features.norm(dim=-1, keepdim=True)
    if not torch.isfinite(norm).all() or (norm == 0).any():
        raise ValueError("a feature vector is zero or not finite; its direction is undefined")
    return features / norm
