"""The keys of a recipe: every table, every key with its default and its effect, and which values exclude each other.

pydantic is the only library that this module needs: reading and checking a recipe loads neither torch nor a model.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dpdmd.distributed.sharding import Sharding
from dpdmd.recipe import bounds
from dpdmd.recipe.model_keys import ModelConfig
from dpdmd.recipe.objective_keys import ObjectiveConfig
from dpdmd.recipe.section import Place, Section

NO_CACHE = "none"  # value of data.cache
QUANTISED = ("int8", "fp8", "nf4")  # values of model.dtype


# Keys that name what a run reads. In a recipe file they are looked up next to the file first (recipe/inputs.py).
INPUTS = (
    "model.teacher",
    "model.loras",
    "student.start",
    "objective.perceptual.backbone",
    "objective.adversarial.real",
    "data.prompts",
    "validation.features",
)


def _two_to_eight(num_steps: int) -> int:
    if num_steps == 1:
        raise ValueError("must be 2 to 8: one step, detached after step 1, would leave DMD nothing to train")
    if not 2 <= num_steps <= 8:
        raise ValueError("must be 2 to 8")
    return num_steps


class StudentConfig(Section):
    """The few-step student."""

    num_steps: Annotated[int, AfterValidator(_two_to_eight)] = Field(
        default=4, description="N, network calls per image, 2 to 8."
    )
    grid: Literal["uniform", "stock"] = Field(
        default="uniform",
        description="Time grid of the student. uniform: every call removes noise. stock: the stock scheduler's grid, "
        "whose last call does almost nothing.",
    )
    shift: float | None = Field(
        default=None,
        gt=0,
        le=bounds.SCALE,
        description="Time shift of the uniform grid (flow models). Lower values end step 1 at a lower noise level. "
        "Default: the model's.",
    )
    kind: Literal["ode", "renoise", "renoise_last"] = Field(
        default="ode",
        description="How a step is taken. ode: deterministically. renoise: x0 is predicted and fresh noise is added "
        "(LCM, DMD2). renoise_last: so in the step before the last, unless that is step 1, and the others "
        "deterministically; cleaner images from the same student.",
    )
    embedded_guidance: float | None = Field(
        default=None,
        ge=0,
        le=bounds.SCALE,
        description="Guidance input of a guidance-distilled student. Default: the teacher's.",
    )
    start: Place | None = Field(
        default=None,
        min_length=1,
        description="Run, RUN@STEP, export or pipeline whose weights it starts from; for a student in lora.roles a run "
        "or a LoRA (file, folder or hub id). Default: the teacher.",
    )


class PromptSource(Section):
    """One of several sources of prompts."""

    source: Place = Field(min_length=1, description="A source as data.prompts names it.")
    weight: float = Field(
        default=1.0, gt=0, le=bounds.LARGEST, description="Share of the prompts, relative to the other sources."
    )


class DataConfig(Section):
    """What the student is asked to draw."""

    prompts: Annotated[Place, Field(min_length=1)] | tuple[PromptSource, ...] = Field(
        min_length=1,
        description='Training prompts: a UTF-8 file with one prompt per line ("#" starts a comment) or .jsonl; '
        '"datasets:ID[:SPLIT]" for a Hugging Face dataset; "generic", composed captions to begin with; "scenes" or '
        '"drawings" for those of a built-in world. Several sources: '
        '[{source = "mine.txt", weight = 3}, {source = "generic"}].',
    )
    samples_per_prompt: int = Field(
        default=1,
        ge=1,
        le=bounds.COUNT,
        description="Number of samples of each prompt in a micro-batch, next to each other. train.batch_size must be a "
        "multiple of it. For objectives that compare samples of a prompt.",
    )
    cache: Place | None = Field(
        default=None,
        min_length=1,
        description="Folder for prompt embeddings and teacher samples, shared by runs. Default: the user's cache. "
        '"none": encode prompts while training.',
    )
    column: str = Field(
        default="prompt", min_length=1, description="Column or key of the prompt in a dataset or .jsonl file."
    )
    negative_column: str | None = Field(
        default=None,
        min_length=1,
        description="Column or key of the prompt's own negative prompt; rows without one have model.negative_prompt. "
        "Default: all have it.",
    )

    @property
    def sources(self) -> tuple[tuple[str, float], ...]:
        """(source, weight) of every source of prompts."""
        if isinstance(self.prompts, str):
            return ((self.prompts, 1.0),)
        return tuple((entry.source, entry.weight) for entry in self.prompts)


class TrainConfig(Section):
    """The optimisation. Defaults are those of arXiv 2602.03139, except for `reuse_samples`."""

    num_updates: int = Field(default=6000, ge=1, le=bounds.UPDATES, description="Number of student updates.")
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        le=bounds.SECONDS,
        description="End training after this many seconds at the latest. Default: no limit.",
    )
    batch_size: int = Field(default=4, ge=1, le=bounds.COUNT, description="Samples per micro-batch and process.")
    accumulation: int = Field(default=1, ge=1, le=bounds.COUNT, description="Micro-batches per update and process.")
    fake_updates: int = Field(
        default=5, ge=1, le=bounds.STEPS, description="M, fake-score updates for each student update."
    )
    ida_decay: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="After each iteration the fake score becomes this share of itself and the rest of the student "
        "(implicit distribution alignment, arXiv 2506.00523): it then lags less. 1 = off.",
    )
    reuse_samples: bool | Literal["student"] = Field(
        default=True,
        description="Which samples the M fake-score updates learn, each update with its own tau and noise. true: one "
        'rollout for all of them. false: one each. "student": those that the student update drew, which then comes '
        "first.",
    )
    random_step: bool = Field(
        default=False,
        description="Backpropagate through one randomly chosen step after the anchored one instead of through the "
        "whole rollout: fewer calls, less memory. Re-noising students always do.",
    )
    optimiser: Literal["adamw", "adamw_8bit", "adamw_offloaded", "adafactor"] = Field(
        default="adamw",
        description="adamw_8bit: moments in 8 bits (bitsandbytes), a quarter of the memory. adamw_offloaded: moments "
        "in the CPU's memory, copied to the device and back in every update. adafactor: statistics of rows and columns "
        "instead of moments, nearly no memory; its learning rates are relative to the size of the weights it changes, "
        "1e-3 or so.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, le=bounds.RATE, description="Learning rate of the student.")
    fake_learning_rate: float | None = Field(
        default=None, gt=0, le=bounds.RATE, description="Learning rate of the fake score. Default: the student's."
    )
    fake_embedded_guidance: float | None = Field(
        default=None,
        ge=0,
        le=bounds.SCALE,
        description="Guidance input of a guidance-distilled fake score. Default: the teacher's.",
    )
    warmup: int = Field(
        default=0, ge=0, le=bounds.UPDATES, description="Student updates over which both learning rates rise linearly."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="How both learning rates fall from the end of the warm-up to zero at train.num_updates. constant: "
        "they do not.",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=bounds.SCALE, description="Weight decay, both networks.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="Betas of AdamW, both networks; Adafactor has none."
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, le=bounds.LARGEST, description="Clip the gradient of each update to this global norm."
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of the moving average of the student's weights per update. 0 = off."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Number format of network calls; weights, losses and optimisers stay in fp32."
    )
    shard: Sharding = Field(
        default=False,
        description="Spread every network over the processes (FSDP2) instead of copying it to each (DDP). true: over "
        'all of them. "machine": over those of each machine, with a replica on every machine (HSDP).',
    )
    gradient_checkpointing: bool | Annotated[int, Field(ge=1)] = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more time. A number: only "
        "in that many of the first blocks; `dpdmd plan` finds how many it takes.",
    )
    compile: bool = Field(
        default=False, description="Compile the networks' blocks with torch.compile: minutes at the start, then faster."
    )
    seed: int = Field(default=0, ge=0, lt=bounds.SEED, description="Seed of everything random.")


class LoraConfig(Section):
    """Which roles train a LoRA adapter on the teacher's own weights instead of all weights of a copy."""

    roles: tuple[Literal["student", "fake_score"], ...] = Field(
        default=(),
        description='Roles that train an adapter. ["student", "fake_score"]: one network for all three roles. Default: '
        "none, three copies.",
    )
    rank: int = Field(default=64, ge=1, le=bounds.SIDE, description="Rank of the adapters.")
    alpha: float | None = Field(
        default=None, gt=0, le=bounds.LARGEST, description="Scale of an adapter, as alpha / rank. Default: rank."
    )
    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Names of the adapted linear layers. Default: the family's attention."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    use_dora: bool = Field(default=False, description="Train magnitude and direction separately (arXiv 2402.09353).")


class ValidationConfig(Section):
    """Images drawn while training, the teacher's above the student's of the same prompts and seeds, and scores."""

    every: int | None = Field(
        default=None,
        ge=0,
        le=bounds.UPDATES,
        description="Student updates between validations, 0 = off. The last student is validated too, unless the run "
        "is shorter than this. Default: ten in a run, or fewer, so that they take at most 5 % of its time.",
    )
    prompts: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Prompts to draw. Default: four, spread over the training prompts."
    )
    num_seeds: int = Field(default=4, ge=1, le=bounds.STEPS, description="Images per prompt, with seeds 0, 1, ...")
    features: Place = Field(
        default="auto",
        min_length=1,
        description='Feature network of the scores: folder or hub id, "scenes", or "auto" as in `dpdmd evaluate`.',
    )


class CheckpointConfig(Section):
    """Checkpoints. One is always written at the end, on Ctrl-C and on SIGTERM."""

    every: int = Field(
        default=500, ge=0, le=bounds.UPDATES, description="Student updates between checkpoints. 0 = only at the end."
    )
    keep: int = Field(default=2, ge=1, le=bounds.COUNT, description="Number of the newest checkpoints to keep.")
    students: bool = Field(
        default=False,
        description="Keep the student of every checkpoint in students/step-000050, a folder for `dpdmd sample`.",
    )
    best: int = Field(
        default=1,
        ge=0,
        le=bounds.COUNT,
        description="Number of best students in validation to keep in students/best. 0 = none.",
    )
    diversity_floor: float = Field(
        default=0.8,
        ge=0,
        le=bounds.SCALE,
        description="Share of the teacher's diversity that a student must keep to be ranked by quality among the best.",
    )


class OutputConfig(Section):
    """Where the run goes."""

    folder: Place = Field(min_length=1, description="Run folder.")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(),
        description='Trackers that receive metrics.jsonl and the pictures: "tensorboard", "wandb". Default: none.',
    )


class Recipe(Section):
    """One training run."""

    model: ModelConfig
    student: StudentConfig = StudentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _named_once(self):
        for key, names in (("lora.roles", self.lora.roles), ("output.trackers", self.output.trackers)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key} must name each only once, got {list(names)}")
        return self

    @model_validator(mode="after")
    def _groups(self):
        if self.train.batch_size % self.data.samples_per_prompt:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be a multiple of data.samples_per_prompt, got "
                f"{self.data.samples_per_prompt}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_weights(self):
        dtype = self.model.dtype
        if dtype != "fp32" and self.train.precision != "bf16":
            raise ValueError(
                f'model.dtype "{dtype}" needs train.precision "bf16": fp32 calls would not fit such weights'
            )
        if dtype in QUANTISED and len(set(self.lora.roles)) < 2:
            raise ValueError(
                f'model.dtype "{dtype}" needs lora.roles ["student", "fake_score"]: quantised weights cannot be '
                f"trained, only adapters on them; got {list(self.lora.roles)}"
            )
        if dtype in QUANTISED and self.train.shard:
            raise ValueError(f'model.dtype "{dtype}" and train.shard exclude each other: such weights are not spread')
        return self

    @model_validator(mode="after")
    def _optimisers(self):
        train, name = self.train, self.train.optimiser
        if name != "adamw" and train.shard:
            raise ValueError(
                f'train.optimiser "{name}" and train.shard exclude each other: its state is of whole weights; use '
                '"adamw", whose moments are spread as well'
            )
        if name == "adafactor" and train.betas != TrainConfig.model_fields["betas"].default:
            raise ValueError(f'train.optimiser "adafactor" has no betas, got train.betas = {list(train.betas)}')
        return self

    @model_validator(mode="after")
    def _perceptual(self):
        if self.objective.name != "dmd_perceptual":
            return self
        if self.student.kind != "ode":
            raise ValueError(
                'objective.name "dmd_perceptual" needs student.kind "ode": a re-noising student draws more than one '
                "sample from one noise"
            )
        num_pairs = self.objective.perceptual.num_pairs
        if num_pairs is not None and self.data.cache == NO_CACHE:
            raise ValueError(
                f"objective.perceptual.num_pairs = {num_pairs} keeps the teacher's samples on disk: it "
                'needs data.cache, got "none"'
            )
        return self
