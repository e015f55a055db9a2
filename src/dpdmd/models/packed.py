"""What FLUX.1, Qwen-Image and Z-Image share: 2 x 2 patches as tokens, and a time shift that grows with the size."""

import math
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

from dpdmd import grids
from dpdmd.grids import Grid
from dpdmd.models.base import LatentShape
from dpdmd.models.parts import flow_grid


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 W/2, 4C), row by row; in a token the column counts fastest, then the row."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, latent_shape: LatentShape) -> Tensor:
    """The inverse of `pack` for latents of `latent_shape` (C, H, W)."""
    _, height, width = latent_shape
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def size_shift(config: dict[str, Any], latent_shape: LatentShape) -> float:
    """mu: linear in the number of tokens, base_shift at base_image_seq_len and max_shift at max_image_seq_len.

    `config` as saved beside the scheduler. See "resolution-dependent shifting" in arXiv 2403.03206, sec. 5.3.2.
    """
    config = FlowMatchEulerDiscreteScheduler.from_config(config).config
    _, height, width = latent_shape
    extra_tokens = height // 2 * (width // 2) - config.base_image_seq_len
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * extra_tokens


def stock_grid(config: dict[str, Any], num_steps: int, latent_shape: LatentShape) -> Grid:
    """What both pipelines take: uniform from 1 to 1 / num_steps, then whatever the scheduler does to it."""
    sigmas = [1 - i / num_steps for i in range(num_steps)]
    return flow_grid(config, num_steps, sigmas=sigmas, mu=size_shift(config, latent_shape))


def uniform_grid(config: dict[str, Any], num_steps: int, latent_shape: LatentShape) -> Grid:
    """Uniform, then the scheduler's shift: exp(mu), mu or a constant, as `config` says; no stretching of the end."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    shift = scheduler.config.shift
    if scheduler.config.use_dynamic_shifting:
        mu = size_shift(config, latent_shape)
        shift = math.exp(mu) if scheduler.config.time_shift_type == "exponential" else mu
    return grids.uniform_grid(num_steps, shift=shift)
