"""Packing latents into tokens of 2 x 2 patches, as FLUX.1, Qwen-Image and others expect them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter

SAMPLE_SIZE = 128  # the stock pipelines' default height and width, in latent pixels


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


def image_ids(latents: Tensor, first: int = 0) -> Tensor:
    """Positions (N, 3) of the tokens of latents (B, C, H, W): `first`, and row and column of the patch."""
    rows, columns = (torch.arange(float(size // 2), device=latents.device) for size in latents.shape[2:])
    return torch.cartesian_prod(rows.new_tensor([first]), rows, columns)


class PackedAdapter(StockAdapter):
    """An adapter whose network takes tokens of 2 x 2 patches, and whose pipeline draws noise for unpacked latents."""

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of unpacked latents; default: SAMPLE_SIZE."""
        size = self.latent_size(height, width, default=SAMPLE_SIZE, patch=2)
        return self.network_config["in_channels"] // 4, *size
