"""From a recipe and a model to a plan: everything that can be wrong before a network is loaded is found here."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

from dpdmd.data.images import captioned_images
from dpdmd.method.discriminator import default_blocks
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.objective import Objective
from dpdmd.method.paths import FlowPath
from dpdmd.method.roles import Role
from dpdmd.method.terms.adversarial import Adversarial
from dpdmd.method.terms.anchor import DiversityAnchor
from dpdmd.method.terms.perceptual import Pictures
from dpdmd.models.base import LatentShape, ModelAdapter, decoder, empty_network, feature_blocks
from dpdmd.models.find import located
from dpdmd.models.lora import LoraSettings
from dpdmd.models.lora_start import require_lora
from dpdmd.models.quantised import missing_package
from dpdmd.models.student_file import exported_student
from dpdmd.recipe.calls import validation_interval
from dpdmd.recipe.inputs import with_absolute_inputs
from dpdmd.recipe.lint import lint_grids, lint_objective
from dpdmd.recipe.objectives import ObjectiveFunction, ObjectiveSetting, find_objective, name_of
from dpdmd.recipe.optimisers import missing_optimiser
from dpdmd.recipe.plan import (
    Budget,
    ComputePlan,
    DataPlan,
    OptimiserPlan,
    Plan,
    SizePlan,
    StudentPlan,
    TauRange,
    TeacherPlan,
    ValidationPlan,
)
from dpdmd.recipe.schema import (
    NO_CACHE,
    DataConfig,
    ModelConfig,
    Recipe,
    StudentConfig,
    TrainConfig,
    ValidationConfig,
)
from dpdmd.recipe.teacher import teacher_loras
from dpdmd.recipe.toml import dump_recipe, flatten


def resolve(recipe: Recipe, adapter: ModelAdapter, *, objective: ObjectiveFunction | None = None) -> Plan:
    """The plan of a recipe for a model; the last function that sees a whole recipe.

    objective: a function to use instead of the one that objective.name says; the plan then carries its name.
    Raises ValueError for settings that do not fit the model or each other.
    """
    recipe = with_absolute_inputs(recipe)
    model, keys, train = recipe.model, recipe.objective, recipe.train
    if adapter.loras != teacher_loras(model):
        raise ValueError("the adapter must have the LoRAs of the recipe: make it by recipe.teacher.teacher_adapter")
    if objective is not None:
        recipe = recipe.model_copy(update={"objective": keys.model_copy(update={"name": name_of(objective)})})
    start = recipe.student.start and located(recipe.student.start)
    _require_possible(recipe, adapter, start)
    scale = _guidance_scale(model, adapter)
    embedded = _embedded_guidance(model, recipe.student, train, adapter)
    _require_negative_prompts(model, recipe.data, scale, adapter)
    build = objective or find_objective(keys.name)
    sizes = _sizes(recipe, adapter, build, scale)
    first = sizes[0]
    plan = Plan(
        latent_shape=first.latent_shape,
        image_size=first.image_size,
        path=adapter.path,
        prediction_space=adapter.prediction_space,
        teacher=TeacherPlan(
            model.teacher,
            first.teacher_grid,
            Guidance(scale, adapter.guidance_rule),
            model.dtype,
            model.negative_prompt,
        ),
        student=StudentPlan(first.student_grid, recipe.student.kind, start, train.random_step),
        embedded_guidance=embedded,
        objective=first.objective,
        objective_name=recipe.objective.name,
        tau_range=TauRange(keys.tau_low, keys.tau_high, keys.tau_shift),
        anchor_steps=first.anchor_steps,
        feature_blocks=_feature_blocks(adapter) if first.objective.discriminator else (),
        real_images=_real_images(first.objective, recipe.data.column),
        data=_data(recipe.data, train),
        optimiser=_optimiser(train),
        compute=ComputePlan(train.precision == "bf16", train.shard, train.gradient_checkpointing, train.compile),
        budget=Budget(train.num_updates, train.max_seconds),
        lora=LoraSettings(**recipe.lora.model_dump()),
        validation=_validation(recipe.validation, len(sizes)),
        checkpoint=recipe.checkpoint,
        output=recipe.output,
        settings=flatten(recipe),
        recipe_toml=dump_recipe(recipe),
        notes=adapter.notes
        + _notes(sizes, scale, embedded["teacher"])
        + lint_objective(keys)
        + [missing for missing in (missing_package(model.dtype), missing_optimiser(train.optimiser)) if missing],
        sizes=sizes,
    )
    if recipe.validation.every is None:
        plan = replace(plan, validation=replace(plan.validation, every=validation_interval(plan)))
    return plan


def _require_possible(recipe: Recipe, adapter: ModelAdapter, start: str | None) -> None:
    """Raises ValueError for what the model, or another setting of the recipe, rules out.

    start: the place of what the student starts from.
    """
    train, roles = recipe.train, recipe.lora.roles
    if recipe.student.kind == "renoise_last" and adapter.callback is None:
        raise ValueError(
            f'student.kind "renoise_last": a {adapter.pipeline_class.__name__} of stock diffusers takes no callback '
            'that could renew the noise between its steps; use "ode" or "renoise"'
        )
    if start and "student" in roles:
        require_lora(start)
    if adapter.loras and train.shard:
        raise ValueError(
            "train.shard reads the weights of the teacher's files, into which model.loras are not merged; merge them "
            "first: in diffusers fuse_lora(), unload_lora_weights() and save_pretrained()"
        )
    if train.ida_decay < 1 and len({"student", "fake_score"} & set(roles)) == 1:
        raise ValueError(
            f"train.ida_decay = {train.ida_decay:g} moves the fake score towards the student, and lora.roles = "
            f"{list(roles)} gives an adapter to only one of them: name both, or set train.ida_decay = 1"
        )


def _sizes(recipe: Recipe, adapter: ModelAdapter, build: ObjectiveFunction, scale: float) -> tuple[SizePlan, ...]:
    """What depends on the size of the images, at each of the recipe's.

    Raises ValueError for several sizes with an objective, or with grids, that are for one, and for a student's grid
    that the stock pipeline cannot draw, which would otherwise be found by the export.
    """
    model = recipe.model
    weights = [size.weight for size in model.sizes or ()] or [1.0]
    sizes = tuple(
        _sized(recipe, adapter, build, scale, size=size, share=weight / sum(weights))
        for size, weight in zip(model.image_sizes, weights, strict=True)
    )
    objective, first_grid = sizes[0].objective, sizes[0].student_grid
    if len(sizes) > 1 and (
        objective.discriminator or objective.num_pairs or any(term.network is not None for term in objective.terms)
    ):
        raise ValueError(
            f"model.sizes: {recipe.objective.name} has networks or samples that are of one size; name one size, or an "
            "objective such as dp_dmd"
        )
    grids = {size.latent_shape: size.student_grid for size in sizes}
    adapter.call_arguments(adapter.sized_scheduler(recipe.student.kind, grids), first_grid)
    return sizes


def _sized(
    recipe: Recipe,
    adapter: ModelAdapter,
    build: ObjectiveFunction,
    scale: float,
    *,
    size: tuple[int | None, int | None],
    share: float,
) -> SizePlan:
    """Grids and objective at a size (height, width) in pixels, or at the teacher's own."""
    keys, (height, width) = recipe.objective, size
    latent_shape = adapter.latent_shape(height, width)
    teacher_grid = _teacher_grid(recipe.model, adapter, latent_shape)
    student_grid = _student_grid(recipe.student, adapter, latent_shape)
    setting = ObjectiveSetting(
        keys=keys,
        path=adapter.path,
        prediction_space=adapter.prediction_space,
        student_grid=student_grid,
        teacher_grid=teacher_grid,
        guidance=Guidance(scale, adapter.guidance_rule),
        samples_per_prompt=recipe.data.samples_per_prompt,
        pictures=Pictures(
            decoder(adapter, in_bf16=recipe.train.precision == "bf16"),
            size=(latent_shape[1] * adapter.vae_factor, latent_shape[2] * adapter.vae_factor),
            one_by_one=bool(recipe.train.gradient_checkpointing),
        ),
    )
    built = build(setting)
    _require_trainable(built, keys.name, student_grid.num_steps)
    return SizePlan(
        image_size=None if height is None or width is None else (height, width),
        latent_shape=latent_shape,
        share=share,
        teacher_grid=teacher_grid,
        student_grid=student_grid,
        objective=built,
        anchor_steps=next((term.num_steps for term in built.terms if isinstance(term, DiversityAnchor)), None),
    )


def _notes(sizes: Sequence[SizePlan], scale: float, embedded: float | None) -> list[str]:
    found = (lint_grids(size.student_grid, size.teacher_grid, size.anchor_steps) for size in sizes)
    notes = list(dict.fromkeys(note for of_size in found for note in of_size))
    if scale == 1 and (embedded or 0) <= 1:
        notes.append(
            "the teacher is not guided (model.guidance_scale 1): real and fake score are then nearly equal and their "
            "difference is mostly noise"
        )
    return notes


def _validation(keys: ValidationConfig, num_sizes: int) -> ValidationPlan:
    chosen = keys.every is not None
    return ValidationPlan(keys.every or 0, chosen, keys.prompts, keys.num_seeds, keys.features, num_sizes)


def _data(data: DataConfig, train: TrainConfig) -> DataPlan:
    return DataPlan(
        prompts=data.sources,
        column=data.column,
        negative_column=data.negative_column,
        cache=None if data.cache == NO_CACHE else data.cache,
        use_cache=data.cache != NO_CACHE,
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        samples_per_prompt=data.samples_per_prompt,
        fake_updates=train.fake_updates,
        reuse_samples=train.reuse_samples,
        seed=train.seed,
    )


def _optimiser(train: TrainConfig) -> OptimiserPlan:
    return OptimiserPlan(
        learning_rate=train.learning_rate,
        fake_learning_rate=train.fake_learning_rate or train.learning_rate,
        warmup=train.warmup,
        schedule=train.schedule,
        num_updates=train.num_updates,
        weight_decay=train.weight_decay,
        betas=train.betas,
        max_grad_norm=train.max_grad_norm,
        ema_decay=train.ema_decay,
        ida_decay=train.ida_decay,
        optimiser=train.optimiser,
    )


def _guidance_scale(model: ModelConfig, adapter: ModelAdapter) -> float:
    """Guidance of the teacher: the recipe's, else the family's; none for an exported student."""
    own = adapter.guidance_scale if exported_student(adapter.source) is None else 1.0
    return own if model.guidance_scale is None else model.guidance_scale


def _teacher_grid(model: ModelConfig, adapter: ModelAdapter, latent_shape: LatentShape) -> Grid:
    """The teacher's stock grid; an exported student keeps its own."""
    student = exported_student(adapter.source)
    if student is None:
        return adapter.stock_grid(model.num_inference_steps or adapter.num_inference_steps, latent_shape)
    if student.kind != "ode":
        raise ValueError(f"model.teacher: {adapter.source} is a re-noising student; a teacher must be deterministic")
    if model.num_inference_steps not in (None, student.num_inference_steps):
        raise ValueError(
            f"model.num_inference_steps: {adapter.source} is a student of {student.num_inference_steps} steps and "
            f"takes no other number, got {model.num_inference_steps}"
        )
    return Grid(student.grid)


def _student_grid(student: StudentConfig, adapter: ModelAdapter, latent_shape: LatentShape) -> Grid:
    if student.shift is None:
        grids = {"uniform": adapter.uniform_grid, "stock": adapter.stock_grid}
        return grids[student.grid](student.num_steps, latent_shape)
    if student.grid != "uniform" or not isinstance(adapter.path, FlowPath):
        raise ValueError(
            f'student.shift is for the grid "uniform" of a flow, got grid "{student.grid}" for {adapter.source}'
        )
    return adapter.uniform_grid(student.num_steps, latent_shape, shift=student.shift)


def _embedded_guidance(
    model: ModelConfig, student: StudentConfig, train: TrainConfig, adapter: ModelAdapter
) -> dict[Role, float | None]:
    """What each role's network is fed as guidance: its own setting, else the teacher's, else the family's."""
    settings: dict[str, tuple[Role, float | None]] = {
        "model.embedded_guidance": ("teacher", model.embedded_guidance),
        "student.embedded_guidance": ("student", student.embedded_guidance),
        "train.fake_embedded_guidance": ("fake_score", train.fake_embedded_guidance),
    }
    if adapter.embedded_guidance is None:
        for key, (_, value) in settings.items():
            if value is not None:
                raise ValueError(f"{key} is set to {value}, but the network of {adapter.source} takes no guidance")
    default = adapter.embedded_guidance if model.embedded_guidance is None else model.embedded_guidance
    return {role: default if value is None else value for role, value in settings.values()}


def _require_negative_prompts(model: ModelConfig, data: DataConfig, scale: float, adapter: ModelAdapter) -> None:
    """Raises ValueError for negative prompts of a family that has none, or of a teacher that is not guided."""
    settings = {"model.negative_prompt": model.negative_prompt, "data.negative_column": data.negative_column}
    key = next((key for key, value in settings.items() if value), None)
    if key is None:
        return
    if not adapter.takes_negative_prompt:
        raise ValueError(f"{key}: {adapter.pipeline_class.__name__} takes no negative prompt; leave it out")
    if scale == 1:
        raise ValueError(
            f"{key} has no effect on a teacher that is not guided: set model.guidance_scale above 1, or leave it out"
        )


def _feature_blocks(adapter: ModelAdapter) -> tuple[int, ...]:
    """The blocks that a discriminator sees: a quarter, a half and three quarters of the way."""
    return default_blocks(len(feature_blocks(adapter, empty_network(adapter))))


def _require_trainable(objective: object, name: str, num_steps: int) -> None:
    """Raises ValueError for what is no objective, lacks what a term of it needs, or leaves an update without a loss."""
    if not isinstance(objective, Objective):
        raise ValueError(f"objective.name {name!r} must return an Objective, got {objective!r}")
    if objective.detach_first and num_steps < 2:
        raise ValueError(f"an objective with detach_first needs student.num_steps >= 2, got {num_steps}")
    for term in objective.terms:
        if term.trains_first_step and not objective.detach_first:
            raise ValueError(f"{name}: the term {term.name!r} trains step 1 and needs an objective with detach_first")
        if isinstance(term, Adversarial) and objective.discriminator is None:
            raise ValueError(f"{name}: the term {term.name!r} needs an objective with a discriminator")
    if all(term.every > 1 for term in objective.terms):
        raise ValueError(f"{name}: at least one term needs every = 1, so that every student update has a loss")


def _real_images(objective: Objective, column: str) -> list[tuple[FilePath, str]]:
    if objective.discriminator is None or objective.discriminator.real == "teacher":
        return []
    try:
        return captioned_images(objective.discriminator.real, column)
    except ValueError as error:
        raise ValueError(f"objective.adversarial.real: {error}") from None
