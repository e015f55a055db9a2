"""How far one set of images is from another, from their features."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024


@dataclass(frozen=True)
class FrechetDistance:
    """The distance, and whether to believe it.

    `reliable` is False when either set has no more images than there are dimensions: its covariance then lacks full
    rank, and the distance mostly measures the number of images.
    """

    value: float
    reliable: bool


@dataclass(frozen=True)
class Neighbours:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(features: Tensor, reference: Tensor) -> FrechetDistance:
    """Squared 2-Wasserstein distance between Gaussians fitted to two sets of features.

        |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^(1/2) C_2 C_1^(1/2))^(1/2))

    features: (N, D), reference: (M, D); fp64 throughout. Raises ValueError when N or M < 2, or D differs.
    Source: arXiv 1706.08500 (FID, there on Inception features).
    """
    features, reference = _pair(features, reference, minimum=2)
    root = _symmetric_root(torch.cov(features.T, correction=1).reshape(features.shape[1], -1))
    covariance = torch.cov(reference.T, correction=1).reshape(features.shape[1], -1)
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    mean_gap = (features.mean(dim=0) - reference.mean(dim=0)).square().sum()
    value = mean_gap + root.square().sum() + torch.trace(covariance) - 2 * cross
    # Rounding can leave a distance of zero slightly negative.
    return FrechetDistance(max(float(value), 0.0), min(len(features), len(reference)) > features.shape[1])


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features under the kernel k(x, y) = (x.y / D + 1)^3.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    It is unbiased for any number of images, so it may be slightly negative for sets that are alike; the Frechet
    distance of few images is too large. features: (N, D), reference: (M, D); fp64 throughout.
    Raises ValueError like `frechet_distance`. Source: arXiv 1801.01401 (KID, there on Inception features and averaged
    over random subsets; here over all pairs, which has the same expectation and less noise).
    """
    features, reference = _pair(features, reference, minimum=2)
    within = sum(_mean_kernel(own, own) for own in (features, reference))
    return within - 2 * _mean_kernel(features, reference)


def neighbours(features: Tensor, reference: Tensor, *, num_neighbours: int = 5) -> Neighbours:
    """Whether two sets lie in each other's k-nearest-neighbour balls.

    precision: share of features inside any ball of the reference; recall: share of the reference inside any ball of the
    features; density: mean number of reference balls around a feature, divided by k; coverage: share of reference balls
    that contain a feature.
    features: (N, D), reference: (M, D). Raises ValueError when N or M <= k, or D differs.
    """
    features, reference = _pair(features, reference, minimum=num_neighbours + 1)
    distance = torch.cdist(features, reference, compute_mode="donot_use_mm_for_euclid_dist")
    radius, radius_reference = _ball_radius(features, num_neighbours), _ball_radius(reference, num_neighbours)
    inside = distance <= radius_reference[None]
    return Neighbours(
        precision=float(inside.any(dim=1).double().mean()),
        recall=float((distance <= radius[:, None]).any(dim=0).double().mean()),
        density=float(inside.double().sum(dim=1).mean() / num_neighbours),
        coverage=float(inside.any(dim=0).double().mean()),
    )


def _pair(features: Tensor, reference: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features must be (images, dimensions) of equal dimension, "
            f"got {tuple(features.shape)} and {tuple(reference.shape)}"
        )
    if min(len(features), len(reference)) < minimum:
        raise ValueError(f"need at least {minimum} images in each set, got {len(features)} and {len(reference)}")
    return features.double(), reference.double()


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Mean of the kernel over all pairs; for a set with itself, over pairs of different members."""
    # In blocks: the whole matrix of 30,000 images would take 7 GB.
    total = math.fsum(float(_kernel(rows @ y.T, x).sum()) for rows in x.split(BLOCK))
    if x is not y:
        return total / (len(x) * len(y))
    return (total - float(_kernel(x.square().sum(dim=1), x).sum())) / (len(x) * (len(x) - 1))


def _kernel(products: Tensor, x: Tensor) -> Tensor:
    return (products / x.shape[1] + 1) ** 3


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _ball_radius(points: Tensor, num_neighbours: int) -> Tensor:
    """Distance of each point to its k-th nearest other point, (N,)."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.kthvalue(num_neighbours + 1, dim=1).values
