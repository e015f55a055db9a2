"""Latents as tokens, 2 x 2 patches, as FLUX.1 and Qwen-Image take them."""

from torch import Tensor
from torch.nn import functional as F

from dpdmd.models.base import LatentShape


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 W/2, 4C), row by row; in a token the column counts fastest, then the row."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, latent_shape: LatentShape) -> Tensor:
    """The inverse of `pack` for latents of `latent_shape` (C, H, W)."""
    _, height, width = latent_shape
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
