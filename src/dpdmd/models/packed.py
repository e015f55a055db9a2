"""Packing latents into tokens of 2 x 2 patches, as FLUX.1 and Qwen-Image expect them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.models.base import LatentShape


def pack(latents: Tensor) -> Tensor:
    """Pack latents (B, C, H, W) into tokens (B, H/2 W/2, 4C).

    Tokens are ordered row by row; within a token the column index of the patch varies fastest, then its row index,
    then the channel.
    """
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, latent_shape: LatentShape | torch.Size) -> Tensor:
    """Unpack tokens (B, H/2 W/2, 4C) into latents (B, C, H, W) of `latent_shape` (C, H, W); the inverse of `pack`."""
    _, height, width = latent_shape
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
