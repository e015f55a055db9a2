"""Grids of the stock flow scheduler, and the scheduler that samples a student on its own grid.

`config` is always the scheduler configuration saved with a pipeline.
"""

import math
from collections.abc import Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.method.grids import Grid
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import LatentShape
from dpdmd.store.errors import library_errors

TOLERANCE = 1e-6  # of times: fp32 rounding
SHIFT_UNIT = 2.0**-20  # shift - 1 and 1 + (shift - 1) are exact in fp32 for multiples of it below 16


def size_shift(config: dict[str, Any], latent_shape: LatentShape) -> float:
    """The shift parameter mu for an image size: `token_shift` for tokens of 2 x 2 latent pixels."""
    _, height, width = latent_shape
    return token_shift(config, height // 2 * (width // 2))


def token_shift(config: dict[str, Any], num_tokens: int) -> float:
    """The shift parameter mu for a number of tokens.

    mu is linear in the number of tokens: base_shift at base_image_seq_len and max_shift at max_image_seq_len.
    Source: "resolution-dependent shifting", arXiv 2403.03206, sec. 5.3.2.
    """
    values = _scheduler(config).config
    slope = (values.max_shift - values.base_shift) / (values.max_image_seq_len - values.base_image_seq_len)
    return values.base_shift + slope * (num_tokens - values.base_image_seq_len)


def stock_grid(
    config: dict[str, Any], num_steps: int, source: str, *, pipeline_gives_sigmas: bool, mu: float | None = None
) -> Grid:
    """The grid of the stock pipeline: the scheduler's own, or a shifted one that is uniform from 1 to 1 / num_steps.

    source: the model's name, for errors. mu: of a dynamic shift. A grid that the pipeline gives equals the uniform one
    up to fp32 rounding, unless the scheduler stretches it to end at shift_terminal (Qwen-Image). Raises ValueError for
    options that give no descending times, such as a shift by which all of them are 1.
    """
    with library_errors(f"{source}: its scheduler's options give no {num_steps} steps"):
        return drawn_grid(_scheduler(config), num_steps, pipeline_gives_sigmas=pipeline_gives_sigmas, mu=mu)


def own_shift(config: dict[str, Any], mu: float) -> float:
    """The factor of the scheduler's time shift (`method.grids.shift_time`): exp(mu), mu or a constant.

    mu: what the pipeline gives a scheduler with a dynamic shift.
    """
    scheduler = _scheduler(config)
    if not scheduler.config.use_dynamic_shifting:
        return scheduler.config.shift
    return math.exp(mu) if scheduler.config.time_shift_type == "exponential" else mu


def uniform_scheduler(
    config: dict[str, Any], num_steps: int, shift: float, kind: StudentKind = "ode", *, pipeline_gives_sigmas: bool
) -> Any:
    """The scheduler with which `num_inference_steps=num_steps` alone draws the shifted uniform grid t_0 ... t_N = 0.

    A pipeline that gives its scheduler the sigmas 1, 1 - 1/N, ..., 1/N needs no more than the shift s. Without them
    the scheduler spaces N sigmas from 1 to sigma_min, which is too far: the last call would be wasted. Shifted by s'
    and stretched to end at t_(N-1), they are the same grid if

        s' = 1 / (1 - (s - 1) / (s N d)),    d = (1 - sigma_min) / (N - 1),    t_(N-1) = s / (N + s - 1)

    since both are fractions of linear functions of the step, equal at three steps. sigma_min = s' / (999 + s') for 1000
    training timesteps, hence the iteration. The shift is rounded so that fp32 leads noise level 1 to exactly 1.
    """
    changes: dict[str, Any] = {"shift": shift}
    if not pipeline_gives_sigmas and num_steps > 1:
        changes = {"shift": shift, "shift_terminal": shift / (num_steps + shift - 1)}
        for _ in range(8):
            spacing = (1 - exact_scheduler(config, kind, **changes).sigma_min) / (num_steps - 1)
            changes["shift"] = 1 / (1 - (shift - 1) / (shift * num_steps * spacing))
    changes["shift"] = round(changes["shift"] / SHIFT_UNIT) * SHIFT_UNIT
    return exact_scheduler(config, kind, **changes)


def drawn_grid(scheduler: Any, num_steps: int, *, pipeline_gives_sigmas: bool, mu: float | None = None) -> Grid:
    """The grid of a stock pipeline with this scheduler, given only the number of steps; mu: of a dynamic shift."""
    if pipeline_gives_sigmas:
        scheduler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)], mu=mu)
    else:
        scheduler.set_timesteps(num_steps)
    return Grid(tuple(scheduler.sigmas.tolist()))


def student_scheduler(
    config: dict[str, Any], kind: StudentKind, grid: Grid, shift: float, *, pipeline_gives_sigmas: bool
) -> Any:
    """The scheduler of a student: it draws a uniform grid by itself, any other when it is given its `sigmas=`.

    shift: the base's own, which is tried first; a uniform grid with another shift is recognised as well.
    """
    shifts, num_steps = [shift], grid.num_steps
    if num_steps > 1:
        last = grid.times[-2]  # s / (N + s - 1)
        found = last * (num_steps - 1) / (1 - last)
        shifts += [float(f"{found:.4g}"), found]
    for value in shifts:
        scheduler = uniform_scheduler(config, num_steps, value, kind, pipeline_gives_sigmas=pipeline_gives_sigmas)
        if same_grid(drawn_grid(scheduler, num_steps, pipeline_gives_sigmas=pipeline_gives_sigmas), grid):
            return scheduler
    return exact_scheduler(config, kind)


def sized_scheduler(
    config: dict[str, Any], kind: StudentKind, grids: Sequence[tuple[float, Grid]], *, pipeline_gives_sigmas: bool
) -> Any:
    """The scheduler with the base's dynamic shift that draws the grid of each size by the number of steps alone.

    grids: (mu, grid) of every size. Raises ValueError if the base's own shift gives other grids.
    """
    own: dict[str, Any] = {"use_dynamic_shifting": True}
    for changes in ({"shift_terminal": None}, {"shift_terminal": config.get("shift_terminal")}):
        scheduler = exact_scheduler(config, kind, **own, **changes)
        drawn = (
            drawn_grid(scheduler, grid.num_steps, pipeline_gives_sigmas=pipeline_gives_sigmas, mu=mu)
            for mu, grid in grids
        )
        if all(same_grid(own, grid) for own, (_, grid) in zip(drawn, grids, strict=True)):
            return scheduler
    raise ValueError(
        "model.sizes: no stock scheduler draws the student's grids of all sizes; set student.shift, which is the same "
        "for all of them"
    )


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids are equal up to fp32 rounding."""
    return one.num_steps == other.num_steps and all(
        abs(a - b) <= TOLERANCE for a, b in zip(one.times, other.times, strict=True)
    )


def exact_scheduler(config: dict[str, Any], kind: StudentKind, **changes: Any) -> Any:
    """The scheduler that uses `sigmas=` unchanged: no shift, stretching, inversion or other spacing.

    kind: "ode" takes deterministic Euler steps, "renoise" draws new noise in every step. changes: what to change of it.
    """
    plain = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    plain |= dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas"), False)
    return _scheduler(config, **(plain | changes), stochastic_sampling=kind == "renoise")


def _scheduler(config: dict[str, Any], **changes: Any) -> Any:
    """The stock scheduler; Any, because diffusers declares neither the result of `from_config` nor its attributes."""
    return FlowMatchEulerDiscreteScheduler.from_config(config, **changes)
