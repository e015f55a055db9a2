"""What a run will do, settled before any weight is loaded: sizes, grids, objective, lint."""

from dataclasses import dataclass
from pathlib import Path as FilePath

from dpdmd.data.images import captioned_images
from dpdmd.method.discriminator import default_blocks
from dpdmd.method.grids import Grid, lint, uniform_grid
from dpdmd.method.objective import Objective
from dpdmd.method.paths import FlowPath
from dpdmd.method.roles import Role
from dpdmd.method.terms.perceptual import Pictures
from dpdmd.models.base import LatentShape, ModelAdapter, decoder, empty_network, feature_blocks
from dpdmd.models.quantised import missing_package
from dpdmd.models.student_file import exported_student
from dpdmd.recipe.objective import AdversarialConfig, anchor_stops, build_objective
from dpdmd.recipe.schema import Recipe
from dpdmd.training.updates import TauRange


@dataclass(frozen=True)
class Plan:
    """A recipe and a model, made concrete.

    embedded_guidance: per role, None where the network takes none. anchor_stops: K_1 ... K_m, empty without an anchor.
    feature_blocks: what a discriminator sees, empty without one. real_images: (file, prompt) of what it takes for real,
    empty where that is the teacher's samples. notes: the lint's warnings in plain words.
    """

    latent_shape: LatentShape
    guidance_scale: float
    embedded_guidance: dict[Role, float | None]
    teacher_grid: Grid
    student_grid: Grid
    objective: Objective
    tau_range: TauRange
    anchor_stops: tuple[int, ...]
    feature_blocks: tuple[int, ...]
    real_images: list[tuple[FilePath, str]]
    notes: list[str]


def make_plan(recipe: Recipe, adapter: ModelAdapter) -> Plan:
    """Everything that can be wrong before a network is loaded. Raises ValueError for settings that do not fit."""
    model, objective = recipe.model, recipe.objective
    latent_shape = adapter.latent_shape(model.height, model.width)
    guidance_scale, teacher_grid = _teacher(recipe, adapter, latent_shape)
    student_grid = _student_grid(recipe, adapter, latent_shape)
    stops = anchor_stops(objective.anchor, student_grid, teacher_grid) if objective.name == "dp_dmd" else ()
    embedded = _embedded_guidance(recipe, adapter)
    is_adversarial = objective.name == "dmd_adversarial"
    notes = lint(student_grid, teacher_grid, stops[0] if stops else None)
    if guidance_scale == 1 and (embedded["teacher"] or 0) <= 1:
        notes.append(
            "the teacher is not guided (model.guidance_scale 1): real and fake score are then nearly equal and their "
            "difference is mostly noise"
        )
    if is_adversarial and objective.adversarial.start >= recipe.train.num_updates:
        notes.append(
            f"the adversarial term begins after {objective.adversarial.start} student updates and there are only "
            f"{recipe.train.num_updates}: this is plain DMD"
        )
    if (missing := missing_package(model.dtype)) is not None:
        notes.append(missing)
    return Plan(
        latent_shape=latent_shape,
        guidance_scale=guidance_scale,
        embedded_guidance=embedded,
        teacher_grid=teacher_grid,
        student_grid=student_grid,
        objective=build_objective(
            objective,
            guidance_scale=guidance_scale,
            student_grid=student_grid,
            teacher_grid=teacher_grid,
            guidance_rule=adapter.guidance_rule,
            samples_per_prompt=recipe.train.samples_per_prompt,
            pictures=Pictures(
                decoder(adapter, in_bf16=recipe.train.precision == "bf16"),
                size=(latent_shape[1] * adapter.vae_factor, latent_shape[2] * adapter.vae_factor),
                one_by_one=recipe.train.gradient_checkpointing,
            ),
        ),
        tau_range=TauRange(objective.tau_low, objective.tau_high, objective.tau_shift),
        anchor_stops=stops,
        feature_blocks=_feature_blocks(objective.adversarial, adapter) if is_adversarial else (),
        real_images=_real_images(recipe) if is_adversarial else [],
        notes=notes,
    )


def _teacher(recipe: Recipe, adapter: ModelAdapter, latent_shape: LatentShape) -> tuple[float, Grid]:
    """Guidance and grid of the teacher: the recipe's, else the family's; an exported student keeps its own grid."""
    model, student = recipe.model, exported_student(adapter.source)
    if student is None:
        scale = adapter.guidance_scale if model.guidance_scale is None else model.guidance_scale
        return scale, adapter.stock_grid(model.num_inference_steps or adapter.num_inference_steps, latent_shape)
    if student.kind != "ode":
        raise ValueError(f"model.teacher: {adapter.source} is a re-noising student; a teacher must be deterministic")
    if model.num_inference_steps not in (None, student.num_inference_steps):
        raise ValueError(
            f"model.num_inference_steps: {adapter.source} is a student of {student.num_inference_steps} steps and "
            f"takes no other number, got {model.num_inference_steps}"
        )
    return model.guidance_scale or 1.0, Grid(student.grid)


def _student_grid(recipe: Recipe, adapter: ModelAdapter, latent_shape: LatentShape) -> Grid:
    student = recipe.student
    if student.shift is None:
        grids = {"uniform": adapter.uniform_grid, "stock": adapter.stock_grid}
        return grids[student.grid](student.num_steps, latent_shape)
    if student.grid != "uniform" or not isinstance(adapter.path, FlowPath):
        raise ValueError(
            f'student.shift is for the grid "uniform" of a flow, got grid "{student.grid}" for {adapter.source}'
        )
    return uniform_grid(student.num_steps, shift=student.shift)


def _embedded_guidance(recipe: Recipe, adapter: ModelAdapter) -> dict[Role, float | None]:
    """What each role's network is fed as guidance: its own setting, else the teacher's, else the family's."""
    settings: dict[str, tuple[Role, float | None]] = {
        "model.embedded_guidance": ("teacher", recipe.model.embedded_guidance),
        "student.embedded_guidance": ("student", recipe.student.embedded_guidance),
        "train.fake_embedded_guidance": ("fake_score", recipe.train.fake_embedded_guidance),
    }
    if adapter.embedded_guidance is None:
        for key, (_, value) in settings.items():
            if value is not None:
                raise ValueError(f"{key} is set to {value}, but the network of {adapter.source} takes no guidance")
    teacher = recipe.model.embedded_guidance
    default = adapter.embedded_guidance if teacher is None else teacher
    return {role: default if value is None else value for role, value in settings.values()}


def _feature_blocks(config: AdversarialConfig, adapter: ModelAdapter) -> tuple[int, ...]:
    """The blocks of the recipe, in the order of the call, or the default ones."""
    number = len(feature_blocks(adapter, empty_network(adapter)))
    blocks = default_blocks(number) if config.blocks is None else tuple(sorted(config.blocks))
    if blocks[-1] >= number:
        raise ValueError(
            f"objective.adversarial.blocks: {adapter.source} has {number} blocks that see the picture, 0 to "
            f"{number - 1}, got {blocks[-1]}"
        )
    return blocks


def _real_images(recipe: Recipe) -> list[tuple[FilePath, str]]:
    real = recipe.objective.adversarial.real
    if real == "teacher":
        return []
    try:
        return captioned_images(real, recipe.data.column)
    except ValueError as error:
        raise ValueError(f"objective.adversarial.real: {error}") from None
