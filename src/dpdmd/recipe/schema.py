"""The recipe of a run: its tables, every key with its default and its meaning, and what excludes what."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.recipe.objective import ObjectiveConfig

NO_CACHE = "none"  # of data.cache


class Section(BaseModel):
    """One table of a recipe: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The teacher, and how it is sampled."""

    teacher: str = Field(min_length=1, description='Pipeline folder, hub id, or "scenes" for the built-in teacher.')
    dtype: Literal["fp32", "bf16", "int8", "nf4"] = Field(
        default="fp32",
        description="Of the teacher's frozen weights; what is trained is fp32. int8 (torchao) and nf4 (4 bits, "
        "bitsandbytes) are for adapters on them.",
    )
    height: int | None = Field(default=None, ge=1, description="Image height in pixels. Default: the teacher's own.")
    width: int | None = Field(default=None, ge=1, description="Image width in pixels. Default: the teacher's own.")
    guidance_scale: float | None = Field(
        default=None, ge=1, description="Guidance of the teacher, 1 = off. Default: the model family's."
    )
    num_inference_steps: int | None = Field(
        default=None, ge=2, description="Steps of the teacher's own grid. Default: the model family's."
    )
    embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled teacher (FLUX.1-dev). Default: 3.5."
    )

    @model_validator(mode="after")
    def _both_sides(self):
        if (self.height is None) != (self.width is None):
            raise ValueError(f"set height and width, or neither, got height {self.height} and width {self.width}")
        return self


def _two_to_eight(num_steps: int) -> int:
    if num_steps == 1:
        raise ValueError("must be 2 to 8: one step, detached behind step 1, would leave DMD nothing to train")
    if not 2 <= num_steps <= 8:
        raise ValueError("must be 2 to 8")
    return num_steps


class StudentConfig(Section):
    """The few-step student."""

    num_steps: Annotated[int, AfterValidator(_two_to_eight)] = Field(
        default=4, description="N, network calls per image: 2 to 8."
    )
    grid: Literal["uniform", "stock"] = Field(
        default="uniform",
        description="uniform: every call counts. stock: the stock scheduler's, whose last call does next to nothing.",
    )
    shift: float | None = Field(
        default=None,
        gt=0,
        description="Shift of the uniform grid of a flow. Default: the model's. Less lands step 1 at less noise, where "
        "more of the picture is settled.",
    )
    kind: Literal["ode", "renoise"] = Field(
        default="ode", description="ode: deterministic steps. renoise: x0 noised anew behind every step (LCM, DMD2)."
    )
    embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled student. Default: the teacher's."
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="Run, export or pipeline to start from. Default: the teacher.",
    )


class DataConfig(Section):
    """What the student is asked to draw."""

    prompts: str = Field(
        min_length=1,
        description='UTF-8 file, one prompt per line ("#" lines are comments) or .jsonl; "datasets:ID[:SPLIT]" for a '
        'Hugging Face dataset; "scenes" for the built-in ones.',
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the prompts' embeddings and the teacher's samples, which runs share. Default: the "
        'user\'s cache. "none": encode while training.',
    )
    column: str = Field(default="prompt", min_length=1, description="Where a .jsonl file or a dataset has the prompt.")


class TrainConfig(Section):
    """The optimisation; defaults are those of arXiv 2602.03139, but for `reuse_samples`."""

    num_updates: int = Field(default=6000, ge=1, description="Student updates.")
    max_seconds: float | None = Field(
        default=None, gt=0, description="Training seconds after which the run ends all the same. Default: no limit."
    )
    batch_size: int = Field(default=4, ge=1, description="Prompts per micro-batch and process.")
    samples_per_prompt: int = Field(
        default=1, ge=1, description="How many samples of a micro-batch one prompt has; batch_size is a multiple."
    )
    accumulation: int = Field(default=1, ge=1, description="Micro-batches per update.")
    fake_updates: int = Field(default=5, ge=1, description="M, fake-score updates before each student update.")
    fake_head_start: int = Field(
        default=0, ge=0, description="Further fake-score updates before the first student update."
    )
    reuse_samples: bool = Field(
        default=True,
        description="The M fake-score updates share one rollout of the student, each with tau and noise of its own.",
    )
    random_step: bool = Field(
        default=False,
        description="Train x0 of one random step behind the anchored ones instead of the end of the whole rollout: "
        "fewer calls, one backward pass through one step. Re-noising students always do.",
    )
    time_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="While training, step 1 lands up to this share of the way to its neighbours beside its time.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="Student's learning rate (AdamW).")
    fake_learning_rate: float | None = Field(
        default=None, gt=0, description="Fake score's learning rate. Default: the student's."
    )
    fake_embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled fake score. Default: the teacher's."
    )
    warmup: int = Field(default=0, ge=0, description="Student updates over which both learning rates rise linearly.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay, both networks.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's betas, both networks."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Global gradient norm each update is clipped to.")
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="Moving average of the student's weights; 0 = off.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of network calls; weights, losses and optimiser stay in fp32."
    )
    shard: bool = Field(
        default=False,
        description="Spread every network over the processes (FSDP2) instead of copying it (DDP).",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = Field(
        default=False, description="torch.compile the networks' blocks: minutes at the start, faster updates behind."
    )
    seed: int = Field(default=0, ge=0, description="Everything random follows from it.")


class LoraConfig(Section):
    """Who trains a LoRA on the teacher's own weights instead of all weights of a copy: saves memory, little else."""

    roles: tuple[Literal["student", "fake_score"], ...] = Field(
        default=(), description='["student", "fake_score"]: one backbone for all three. Default: nobody, three copies.'
    )
    rank: int = Field(default=64, ge=1, description="Rank of the update of every target.")
    alpha: float | None = Field(default=None, gt=0, description="The update is scaled by alpha / rank. Default: rank.")
    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Names of the linear layers. Default: the family's attention layers."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    use_dora: bool = Field(default=False, description="Train magnitudes apart from directions (arXiv 2402.09353).")


class ValidationConfig(Section):
    """Pictures while training, teacher above, student below, same prompts and seeds; and their figures."""

    every: int = Field(default=0, ge=0, description="Student updates between validations; 0 = off.")
    prompts: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Default: four prompts spread over the training prompts."
    )
    num_seeds: int = Field(default=4, ge=1, description="Images per prompt, seeds 0, 1, ...")
    features: str = Field(
        default="auto",
        min_length=1,
        description='Network of the figures: folder or hub id, "scenes", or "auto", as `dpdmd evaluate` has it.',
    )


class CheckpointConfig(Section):
    """Checkpoints; one is always written at the end, on Ctrl-C and on SIGTERM."""

    every: int = Field(default=500, ge=0, description="Student updates between checkpoints; 0 = only at the end.")
    keep: int = Field(default=2, ge=1, description="How many of the newest are kept.")
    students: bool = Field(
        default=False,
        description="Keep with every checkpoint the student of that moment, students/step-000050: `dpdmd sample` "
        "takes that folder.",
    )
    best: int = Field(
        default=1,
        ge=0,
        description="How many students are kept for their figures in validation, in students/best; 0: none.",
    )
    diversity_floor: float = Field(
        default=0.8,
        ge=0,
        description="The best is of highest quality among those that keep this share of the teacher's diversity.",
    )


class OutputConfig(Section):
    """Where the run goes."""

    folder: str = Field(min_length=1, description="Run folder.")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(),
        description='["tensorboard", "wandb"], or one of them, are told all that metrics.jsonl is, and the pictures.',
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
    def _groups(self):
        if self.train.batch_size % self.train.samples_per_prompt:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be a multiple of train.samples_per_prompt, got "
                f"{self.train.samples_per_prompt}"
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
        if self.student.start is not None and "student" in self.lora.roles:
            raise ValueError(
                f"student.start is for a student that trains all weights, got {self.student.start!r} and a LoRA student"
            )
        return self

    @model_validator(mode="after")
    def _perceptual(self):
        if self.objective.name == "dmd_perceptual" and self.student.kind == "renoise":
            raise ValueError(
                'objective.name "dmd_perceptual" needs student.kind "ode": a re-noising student draws more than one '
                "sample from one noise"
            )
        if self.objective.num_pairs is not None and self.data.cache == NO_CACHE:
            raise ValueError(
                f"objective.perceptual.num_pairs = {self.objective.num_pairs} keeps the teacher's samples on disk: it "
                'needs data.cache, got "none"'
            )
        return self
