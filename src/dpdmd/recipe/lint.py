"""Warnings in plain words about settings that a user is likely to regret."""

from itertools import pairwise

from dpdmd.method.grids import Grid, anchor_steps
from dpdmd.recipe.objective_keys import OBJECTIVES, ObjectiveConfig

NEAR_EMPTY_STEP = 0.02
# Tables of [objective], and the one built-in objective that reads each.
READ_BY = {"anchor": "dp_dmd", "perceptual": "dmd_perceptual", "adversarial": "dmd_adversarial"}


def lint_grids(student: Grid, teacher: Grid | None = None, num_anchor_steps: int | None = None) -> list[str]:
    """Plain-words warnings: student steps that change almost nothing, an anchor far from where step 1 lands."""
    messages = []
    for i, (a, b) in enumerate(pairwise(student.times)):
        if a - b < NEAR_EMPTY_STEP:
            messages.append(
                f"student step {i + 1} of {student.num_steps} goes from t = {a:.4f} to {b:.4f} and does almost "
                f"nothing: {student.num_steps} calls are worth {student.num_steps - 1}. "
                'student.grid = "uniform", or with it a smaller student.shift, makes every call count.'
            )
    if teacher is not None and num_anchor_steps is not None:
        reached, landing = teacher.times[num_anchor_steps], student.times[1]
        span, first = student.times[0] - reached, student.times[0] - landing
        better = anchor_steps(teacher, landing)
        if better != num_anchor_steps and (first > 1.5 * span or span > 1.5 * first):
            messages.append(
                f"the anchor is the teacher's step {num_anchor_steps}, t = {reached:.4f}, but the student's first step "
                f"lands at t = {landing:.4f}, {first / span:.1f} times as far. Step {better} is at "
                f"t = {teacher.times[better]:.4f}."
            )
    return messages


def lint_objective(keys: ObjectiveConfig) -> list[str]:
    """Plain-words warnings: keys that are not at their defaults and that the built-in objective does not read."""
    messages = []
    for table, reader in READ_BY.items():
        given = [f"objective.{table}.{key}" for key in getattr(keys, table).model_dump(exclude_defaults=True)]
        if given and keys.name in OBJECTIVES and keys.name != reader:
            messages.append(
                f'objective.name = "{keys.name}" does not read {", ".join(given)}; only "{reader}" reads '
                f"objective.{table}"
            )
    return messages
