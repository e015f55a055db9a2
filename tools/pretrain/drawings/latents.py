"""The latents of the drawings: a fixed linear code of 8 x 8 patches, so that every stage can be trained on its own.

    z[n] = normaliser * std[n]^(-1/2) * <component n, patch - mean patch>,    n = 1 ... 16

Components and their std are those of a principal component analysis of all patches of all drawings, in the oracle's
luma and colour differences. With std^(-1/2), halfway between the plain coefficients and whitened ones, the components
that show more of a drawing also count for more in the denoising loss. The normaliser gives the latents unit variance.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import luma_chroma

PATCH = 8  # pixels
LATENT_CHANNELS = 16
LATENT_SIZE = 4
PATCH_SIZE = 2  # of the denoising network, in latents


def project(images: Tensor) -> Tensor:
    """Latents (B, 16, 4, 4) of images (B, 3, 32, 32) in [-1, 1]."""
    matrix, mean = _code()
    return ((_patches(images) - mean) @ matrix).transpose(1, 2).unflatten(2, (LATENT_SIZE, LATENT_SIZE)).contiguous()


@cache
def drawing_latents() -> Tensor:
    """Latents (N, 16, 4, 4) of all drawings, in the catalogue's order."""
    return project(catalogue().images)


def _patches(images: Tensor) -> Tensor:
    """Patches (B, 16, 192), row by row."""
    return F.unfold(luma_chroma(images), PATCH, stride=PATCH).transpose(1, 2)


@cache
def _code() -> tuple[Tensor, Tensor]:
    """The matrix (192, 16) and the mean patch (192,) of the code."""
    patches = _patches(catalogue().images).flatten(0, 1).double()
    mean = patches.mean(0)
    variances, components = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    std, components = variances.flip(0)[:LATENT_CHANNELS].sqrt(), components.flip(1)[:, :LATENT_CHANNELS]
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    normaliser = std.mean().rsqrt()  # the variance of component n is std[n] before it
    return (components * signs * std.rsqrt() * normaliser).float(), mean.float()
