"""Grids of the stock flow scheduler, and the scheduler that samples a student on its own grid.

`config` is always the scheduler configuration saved with a pipeline.
"""

import math
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.method import grids
from dpdmd.method.grids import Grid
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import LatentShape


def default_grid(config: dict[str, Any], num_steps: int) -> Grid:
    """The grid that `set_timesteps(num_steps)` produces."""
    scheduler = _scheduler(config)
    scheduler.set_timesteps(num_steps)
    return Grid(tuple(scheduler.sigmas.tolist()))


def size_shift(config: dict[str, Any], latent_shape: LatentShape) -> float:
    """The shift parameter mu for an image size.

    mu is linear in the number of tokens: base_shift at base_image_seq_len and max_shift at max_image_seq_len.
    Source: "resolution-dependent shifting", arXiv 2403.03206, sec. 5.3.2.
    """
    values = _scheduler(config).config
    _, height, width = latent_shape
    extra_tokens = height // 2 * (width // 2) - values.base_image_seq_len
    slope = (values.max_shift - values.base_shift) / (values.max_image_seq_len - values.base_image_seq_len)
    return values.base_shift + slope * extra_tokens


def stock_grid(config: dict[str, Any], num_steps: int, latent_shape: LatentShape) -> Grid:
    """The default grid of the FLUX.1, Qwen-Image and Z-Image pipelines: uniform from 1 to 1 / num_steps, then shifted.

    It equals `uniform_grid` up to fp32 rounding, unless the scheduler stretches it to end at shift_terminal
    (Qwen-Image).
    """
    scheduler = _scheduler(config)
    scheduler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)], mu=size_shift(config, latent_shape))
    return Grid(tuple(scheduler.sigmas.tolist()))


def uniform_grid(config: dict[str, Any], num_steps: int, latent_shape: LatentShape) -> Grid:
    """The uniform grid with the scheduler's time shift: exp(mu), mu or a constant, depending on `config`.

    Unlike `stock_grid`, it is never stretched to end at shift_terminal.
    """
    scheduler = _scheduler(config)
    shift = scheduler.config.shift
    if scheduler.config.use_dynamic_shifting:
        mu = size_shift(config, latent_shape)
        shift = math.exp(mu) if scheduler.config.time_shift_type == "exponential" else mu
    return grids.uniform_grid(num_steps, shift=shift)


def exact_scheduler(config: dict[str, Any], kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that uses `sigmas=` unchanged: no shift, stretching, inversion or other spacing.

    kind: "ode" takes deterministic Euler steps, "renoise" draws new noise in every step.
    """
    plain = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    plain |= dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas"), False)
    return _scheduler(config, **plain, stochastic_sampling=kind == "renoise")


def _scheduler(config: dict[str, Any], **changes: Any) -> Any:
    """The stock scheduler; Any, because diffusers declares neither the result of `from_config` nor its attributes."""
    return FlowMatchEulerDiscreteScheduler.from_config(config, **changes)
