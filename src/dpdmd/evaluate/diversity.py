"""Diversity of the samples of one prompt, from their features."""

import torch
from torch import Tensor


def pairwise_diversity(features: Tensor) -> Tensor:
    """1 - mean cosine over the R (R - 1) / 2 pairs of samples of each prompt.

        D = 1 - 2 / (R (R - 1)) sum_{i < j} <f_i, f_j>,   f L2-normalised

    features: (P, R, D) of P prompts with R samples each. Returns (P,) fp64: 0 when all samples are alike, 1
    when they are orthogonal. Raises ValueError when R < 2, or when a feature vector is zero or not finite.
    Source: arXiv 2602.03139, section on metrics.
    """
    _require_samples(features, 3, "(prompts, samples, dimensions)")
    return _pair_means(_unit(features))


def vendi_score(features: Tensor) -> Tensor:
    """Effective number of different samples of each prompt, from 1 to R.

        V = exp(-sum_k l_k log l_k),   l the eigenvalues of the cosine kernel / R

    features: (P, R, D). Returns (P,) fp64. Raises like `pairwise_diversity`. Source: arXiv 2210.02410.
    """
    _require_samples(features, 3, "(prompts, samples, dimensions)")
    unit = _unit(features)
    kernel = unit @ unit.transpose(1, 2) / features.shape[1]
    eigenvalues = torch.linalg.eigvalsh(kernel).clamp(min=0)
    return torch.exp(-torch.special.xlogy(eigenvalues, eigenvalues).sum(dim=-1))


def spatial_diversity(features: Tensor) -> Tensor:
    """1 - mean cosine over pairs of samples of each prompt, place by place, averaged over places.

        S = 1/P' sum_p D(f_p),   D as in `pairwise_diversity`, f_p the features at place p

    Two images are alike only where they show the same thing at the same place. An object that moves or turns raises S,
    which a pooled feature may not notice. features: (P, R, P', D) of P' places. Returns (P,) fp64.
    Raises ValueError like `pairwise_diversity`, also when the feature of one place in one image is zero.
    Ours, after the pooled one of arXiv 2602.03139.
    """
    _require_samples(features, 4, "(prompts, samples, places, dimensions)")
    # One prompt at a time, because all of them in fp64 would take twice the memory.
    return torch.stack([_pair_means(_unit(prompt.transpose(0, 1))).mean() for prompt in features])


def pairwise_distance(features: Tensor) -> Tensor:
    """Mean Euclidean distance over the R (R - 1) / 2 pairs of samples of each prompt.

    features: (P, R, D). Returns (P,) fp64. Raises ValueError when R < 2.
    """
    _require_samples(features, 3, "(prompts, samples, dimensions)")
    num_samples = features.shape[1]
    distance = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distance.sum(dim=(1, 2)) / (num_samples * (num_samples - 1))


def _pair_means(unit: Tensor) -> Tensor:
    """1 - mean inner product over pairs, (..., R, D) of unit vectors to (...)."""
    num_samples = unit.shape[-2]
    # |sum f|^2 = R + sum over ordered pairs of <f_i, f_j>: no R x R matrix is needed.
    pairs = unit.sum(dim=-2).square().sum(dim=-1) - unit.square().sum(dim=(-2, -1))
    return 1 - pairs / (num_samples * (num_samples - 1))


def _require_samples(features: Tensor, ndim: int, meaning: str) -> None:
    if features.ndim != ndim:
        raise ValueError(f"features must be {meaning}, got {tuple(features.shape)}")
    if features.shape[1] < 2:
        raise ValueError(f"diversity needs at least 2 images per prompt, got {features.shape[1]}")


def _unit(features: Tensor) -> Tensor:
    features = features.double()
    norm = features.norm(dim=-1, keepdim=True)
    if not torch.isfinite(norm).all() or (norm == 0).any():
        raise ValueError("a feature vector is zero or not finite; its direction is undefined")
    return features / norm
