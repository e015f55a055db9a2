"""The shipped objectives: functions from a setting to terms. One of your own has the same form.

    def my_objective(setting: ObjectiveSetting) -> Objective: ...

A recipe names it "my_module:my_objective", `dpdmd.train` takes it as an argument.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import cast

from dpdmd.method.discriminator import DiscriminatorSettings
from dpdmd.method.grids import Grid, anchor_steps
from dpdmd.method.guidance import Guidance
from dpdmd.method.losses import Space
from dpdmd.method.objective import Objective
from dpdmd.method.paths import Path
from dpdmd.method.terms.adversarial import Adversarial
from dpdmd.method.terms.anchor import DiversityAnchor
from dpdmd.method.terms.dmd import Dmd
from dpdmd.method.terms.perceptual import Perceptual, Pictures
from dpdmd.recipe.objective_keys import AnchorConfig, ObjectiveConfig
from dpdmd.vision.perceptual import PerceptualDistance


@dataclass(frozen=True)
class ObjectiveSetting:
    """What an objective is built from.

    keys: the recipe's [objective] table. path, prediction_space: the model's. student_grid, teacher_grid: their times.
    guidance: the teacher's, with the family's rule. samples_per_prompt: how many samples of a prompt stand next to each
    other in a micro-batch (data.samples_per_prompt). pictures: how latents are decoded.
    """

    keys: ObjectiveConfig
    path: Path
    prediction_space: Space
    student_grid: Grid
    teacher_grid: Grid
    guidance: Guidance
    samples_per_prompt: int = 1
    pictures: Pictures | None = None


ObjectiveFunction = Callable[[ObjectiveSetting], Objective]


def dmd(setting: ObjectiveSetting) -> Objective:
    """DMD alone, with a gradient through every step (arXiv 2311.18828, 2405.14867)."""
    return Objective(terms=(_dmd_term(setting),))


def dp_dmd(setting: ObjectiveSetting) -> Objective:
    """DP-DMD (arXiv 2602.03139): the diversity anchor on step 1, DMD on the steps after it.

    Raises ValueError for a student of one step, for grids that start at different noise, and for a K that the teacher's
    grid does not have.
    """
    config = setting.keys.anchor
    _require_equal_start(setting, "dp_dmd")
    if setting.student_grid.num_steps < 2:
        raise ValueError(
            "dp_dmd needs student.num_steps >= 2: with one step, detached after step 1, DMD would train nothing"
        )
    scale = setting.guidance.scale if config.guidance_scale is None else config.guidance_scale
    anchor = DiversityAnchor(
        guidance=replace(setting.guidance, scale=scale),
        num_steps=num_anchor_steps(config, setting.student_grid, setting.teacher_grid),
        weight=config.weight,
        every=config.every,
        fraction=config.fraction,
        target=config.target,
        coarse_steps=config.coarse_steps,
        second_order=config.second_order,
    )
    return Objective(terms=(_dmd_term(setting), anchor), detach_first=True)


def dmd_perceptual(setting: ObjectiveSetting) -> Objective:
    """DMD + perceptual: the rival that pulls pictures to the teacher's (arXiv 2311.18828, eq. 9)."""
    config = setting.keys.perceptual
    _require_equal_start(setting, "dmd_perceptual")
    pictures = setting.pictures
    assert pictures is not None, "dmd_perceptual needs the pictures of the model"
    perceptual = Perceptual(
        guidance=setting.guidance,
        num_teacher_steps=setting.teacher_grid.num_steps,
        distance=PerceptualDistance(config.backbone, pictures.size),
        pictures=pictures,
        weight=config.weight,
        is_kept=config.num_pairs is not None,
    )
    return Objective(terms=(_dmd_term(setting), perceptual), num_pairs=config.num_pairs)


def dmd_adversarial(setting: ObjectiveSetting) -> Objective:
    """DMD + adversarial: the rival with DMD2's discriminator (arXiv 2405.14867, sec. 4.3)."""
    keys, config = setting.keys, setting.keys.adversarial
    adversarial = Adversarial(tau_low=keys.tau_low, tau_high=keys.tau_high, weight=config.weight)
    discriminator = DiscriminatorSettings(config.features, config.learning_rate, config.real, config.num_real)
    return Objective(terms=(_dmd_term(setting), adversarial), discriminator=discriminator)


# The one table of names, as objective.name has them.
SHIPPED: dict[str, ObjectiveFunction] = {
    "dmd": dmd,
    "dp_dmd": dp_dmd,
    "dmd_perceptual": dmd_perceptual,
    "dmd_adversarial": dmd_adversarial,
}


def find_objective(name: str) -> ObjectiveFunction:
    """The shipped objective of that name, or the function that "module:function" names.

    The module is imported, from the working directory as well. Raises ValueError when there is none.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    module_name, _, function_name = name.partition(":")
    here = str(FilePath.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise ValueError(
            f"objective.name {name!r}: cannot import {module_name} ({error}); a module of your own must be in the "
            "working directory or on PYTHONPATH, or pass objective= to dpdmd.train"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(function):
        raise ValueError(f"objective.name {name!r}: the module {module_name} has no function {function_name}")
    return cast(ObjectiveFunction, function)  # `resolve` checks what it returns


def name_of(function: ObjectiveFunction) -> str:
    """How a recipe would name it: "module:function"."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def num_anchor_steps(config: AnchorConfig, student_grid: Grid, teacher_grid: Grid) -> int:
    """K: the recipe's, or as many teacher steps as lead to where the student's first step lands.

    Raises ValueError unless 1 <= K < number of teacher steps.
    """
    if config.steps is None:
        return anchor_steps(teacher_grid, student_grid.times[1])
    if not config.steps < teacher_grid.num_steps:
        raise ValueError(f"anchor.steps must be below the teacher's {teacher_grid.num_steps} steps, got {config.steps}")
    return config.steps


def _dmd_term(setting: ObjectiveSetting) -> Dmd:
    keys = setting.keys
    return Dmd(
        guidance=setting.guidance,
        tau_low=keys.tau_low,
        tau_high=keys.tau_high,
        tau_shift=keys.tau_shift,
        normalisation=keys.normalisation,
    )


def _require_equal_start(setting: ObjectiveSetting, name: str) -> None:
    student, teacher = setting.student_grid.times[0], setting.teacher_grid.times[0]
    if student != teacher:
        raise ValueError(
            f"{name} needs student and teacher to start at the same noise, got t = {student} and {teacher}"
        )
