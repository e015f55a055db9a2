"""What a recipe and a model resolve to: everything that later code needs, in small frozen values.

Nothing after `resolve` sees a recipe: planning counts a `Plan`, training builds its parts from one.
"""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path as FilePath
from typing import Any, Literal

from dpdmd.distributed.sharding import Sharding
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.losses import Space
from dpdmd.method.objective import Objective
from dpdmd.method.paths import Path
from dpdmd.method.roles import Role
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import LatentShape
from dpdmd.models.lora import LoraSettings
from dpdmd.recipe.optimisers import Optimiser
from dpdmd.recipe.schema import CheckpointConfig, OutputConfig

NUM_PROMPTS = 4  # of a validation, unless the recipe names them


@dataclass(frozen=True)
class TeacherPlan:
    """The teacher: its name in the recipe (`source`), how it is sampled, and the format of its weights.

    negative_prompt: what it is guided away from, of prompts without one of their own.
    """

    source: str
    grid: Grid
    guidance: Guidance
    dtype: Literal["fp32", "bf16", "int8", "fp8", "nf4"]
    negative_prompt: str = ""

    def negative(self, own: str | None) -> str:
        """The negative prompt of a prompt whose own is `own`."""
        return self.negative_prompt if own is None else own


@dataclass(frozen=True)
class StudentPlan:
    """The student: its grid and kind, what it starts from (None: the teacher), whether one random step is trained."""

    grid: Grid
    kind: StudentKind
    start: str | None
    random_step: bool

    @property
    def is_simulated(self) -> bool:
        """Whether training takes x0_hat of one random step of each sample (`rollout.backward_simulation`)."""
        return self.random_step or self.kind == "renoise"


@dataclass(frozen=True)
class TauRange:
    """Noise levels at which the fake score is trained: low to high, shifted."""

    low: float
    high: float
    shift: float


@dataclass(frozen=True)
class DataPlan:
    """Prompts, and how they are cut into micro-batches of `batch_size` samples, `accumulation` of them per process.

    prompts: (source, weight) of every source. column, negative_column: in a table. cache: folder of embeddings and
    teacher samples; None: the user's cache. use_cache False: encode while training. fake_updates: M. reuse_samples:
    whether these share one rollout, or learn the samples of the student's update.
    """

    prompts: tuple[tuple[str, float], ...]
    column: str
    negative_column: str | None
    cache: str | None
    use_cache: bool
    batch_size: int
    accumulation: int
    samples_per_prompt: int
    fake_updates: int
    reuse_samples: bool | Literal["student"]
    seed: int


@dataclass(frozen=True)
class OptimiserPlan:
    """The optimiser of every trained role, and the moving average of the student's weights.

    warmup, num_updates: student updates of the rise and of the whole run. schedule: how rates fall in between.
    ida_decay: share of itself that the fake score keeps after an iteration; the rest is the student's.
    """

    learning_rate: float
    fake_learning_rate: float
    warmup: int
    schedule: Literal["constant", "linear", "cosine"]
    num_updates: int
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    ema_decay: float
    ida_decay: float = 1.0
    optimiser: Optimiser = "adamw"


@dataclass(frozen=True)
class ComputePlan:
    """How networks are computed and spread. in_bf16: network calls under autocast. gradient_checkpointing: whether
    blocks are recomputed, or how many of the first ones."""

    in_bf16: bool
    shard: Sharding
    gradient_checkpointing: bool | int
    compile: bool

    @property
    def recomputes(self) -> bool:
        """Whether any block is recomputed."""
        return bool(self.gradient_checkpointing)

    @property
    def num_recomputed(self) -> int | None:
        """How many of the first blocks are; None: all."""
        return None if isinstance(self.gradient_checkpointing, bool) else self.gradient_checkpointing


@dataclass(frozen=True)
class ValidationPlan:
    """Pictures on the way: how often (every: updates in between, 0 = off), of what, and which network sees them.

    prompts: None for NUM_PROMPTS of the training prompts. is_chosen: whether the recipe says how often.
    """

    every: int
    is_chosen: bool
    prompts: tuple[str, ...] | None
    num_seeds: int
    features: str
    num_sizes: int = 1

    @property
    def num_pictures(self) -> int:
        """Pictures of the student in one validation, of all sizes."""
        return (NUM_PROMPTS if self.prompts is None else len(self.prompts)) * self.num_seeds * self.num_sizes


@dataclass(frozen=True)
class SizePlan:
    """One of the sizes of a run, and what depends on it.

    image_size: (height, width) in pixels. share: of the updates. The others are those of `Plan` at this size.
    """

    image_size: tuple[int, int] | None
    latent_shape: LatentShape
    share: float
    teacher_grid: Grid
    student_grid: Grid
    objective: Objective
    anchor_steps: int | None


@dataclass(frozen=True)
class Budget:
    """When a run ends: after this many student updates or training seconds."""

    num_updates: int
    max_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """A recipe and a model, made concrete.

    latent_shape: (C, H, W). image_size: (height, width) in pixels, None for the model's own. path, prediction_space:
    the model's. embedded_guidance: per role, None where the network takes none. anchor_steps: K of the objective's
    anchor, None without one. feature_blocks: which blocks a discriminator sees, empty without one. real_images: (file,
    prompt) of its real images, empty if it uses samples of the teacher. objective_name: as a recipe names it.
    settings: {dotted key: value} of the whole recipe, for records and for comparing runs. recipe_toml: the same as a
    file. notes: warnings in plain words. sizes: every size that is trained, the first of which the plan itself has;
    the others by `at`.
    """

    latent_shape: LatentShape
    image_size: tuple[int, int] | None
    path: Path
    prediction_space: Space
    teacher: TeacherPlan
    student: StudentPlan
    embedded_guidance: dict[Role, float | None]
    objective: Objective
    objective_name: str
    tau_range: TauRange
    anchor_steps: int | None
    feature_blocks: tuple[int, ...]
    real_images: list[tuple[FilePath, str]]
    data: DataPlan
    optimiser: OptimiserPlan
    compute: ComputePlan
    budget: Budget
    lora: LoraSettings
    validation: ValidationPlan
    checkpoint: CheckpointConfig
    output: OutputConfig
    settings: dict[str, Any]
    recipe_toml: str
    notes: list[str]
    sizes: tuple[SizePlan, ...]

    def at(self, index: int) -> "Plan":
        """The plan of one of the sizes alone."""
        if len(self.sizes) == 1:
            return self
        size = self.sizes[index]
        return replace(
            self,
            sizes=(replace(size, share=1.0),),
            latent_shape=size.latent_shape,
            image_size=size.image_size,
            teacher=replace(self.teacher, grid=size.teacher_grid),
            student=replace(self.student, grid=size.student_grid),
            objective=size.objective,
            anchor_steps=size.anchor_steps,
            validation=replace(self.validation, num_sizes=1),
        )

    @property
    def at_each_size(self) -> "list[Plan]":
        """The plan of every size."""
        return [self.at(i) for i in range(len(self.sizes))]

    @property
    def largest(self) -> "Plan":
        """The plan of the size with the most pixels."""
        return max(self.at_each_size, key=lambda plan: prod(plan.latent_shape))
