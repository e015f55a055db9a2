"""The only table of objective names: a name and its settings become a list of terms."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dpdmd.method.grids import Grid, anchor_steps
from dpdmd.method.guidance import Guidance, GuidanceRule, linear_rule
from dpdmd.method.losses import AdversarialKind
from dpdmd.method.objective import Objective, Ramp
from dpdmd.method.terms.adversarial import Adversarial
from dpdmd.method.terms.anchor import DiversityAnchor
from dpdmd.method.terms.dmd import Dmd
from dpdmd.method.terms.perceptual import Perceptual, Pictures
from dpdmd.vision.perceptual import PerceptualDistance

Interval = tuple[float, float]


class AnchorConfig(BaseModel):
    """The diversity anchor of DP-DMD."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(default=0.05, ge=0, description="lambda; the paper's 0.05. Needs a sweep per model.")
    every: int = Field(
        default=1,
        ge=1,
        description="Student updates per anchored one, in which its weight is so many times lambda: 2 saves half the "
        "anchor's calls.",
    )
    steps: int | None = Field(
        default=None, ge=1, description="K, teacher steps of the anchor. Default: where the student's first step lands."
    )
    time: float | None = Field(default=None, gt=0, lt=1, description="Name the anchor by t instead of by K.")
    guidance_scale: float | None = Field(default=None, ge=1, description="Default: the teacher's. 1 = off.")
    depth: int = Field(
        default=1, ge=1, le=7, description="m: how many first steps are anchored, and cut from DMD; the paper's 1."
    )
    coarse_steps: int = Field(
        default=4,
        ge=1,
        description="Teacher steps taken to each anchor, evenly spread over its K; K or more: all of them.",
    )
    second_order: bool = Field(
        default=True,
        description="Let each of these steps use the one before: nearer to the fine way at no more calls.",
    )
    variation_weight: float = Field(
        default=0.0, ge=0, description="Of a term on how samples of one prompt differ; wants train.samples_per_prompt."
    )
    target: Literal["secant", "x0"] = Field(
        default="secant",
        description="secant: the teacher's way from t_0 to t_K, in the network's own space; x0: its belief at t_K, in "
        "x0 space, whose loss is 213.6 times larger than in eps for SDXL.",
    )

    @model_validator(mode="after")
    def _one_name(self):
        if self.steps is not None and self.time is not None:
            raise ValueError("set anchor.steps or anchor.time, not both")
        if self.depth > 1 and (self.steps is not None or self.time is not None):
            raise ValueError("anchor.steps and anchor.time are for anchor.depth 1: deeper ones lie where steps land")
        return self


class PerceptualConfig(BaseModel):
    """The perceptual rival of DP-DMD: the student's picture is pulled to the teacher's from the same noise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(default=0.25, ge=0, description="Of the distance; DMD's 0.25. Needs a sweep per model.")
    backbone: str = Field(
        default="scenes",
        min_length=1,
        description='Whose features are compared: "scenes" for the built-in teacher, a .safetensors file of LPIPS '
        "weights, or folder or hub id of a transformers vision model.",
    )
    num_pairs: int | None = Field(
        default=None,
        ge=1,
        description="Train the student on so many pairs of prompt and noise, whose teacher samples are kept in "
        "data.cache. Default: new noise and the teacher's whole rollout in every update.",
    )


class AdversarialConfig(BaseModel):
    """The discriminator of DMD2, and what it asks of the student."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(
        default=5e-3, gt=0, description="Of the student's term; DMD2's 5e-3 for SDXL. Smaller latents need more."
    )
    start: int = Field(
        default=0, ge=0, description="Student updates before the term counts; the head learns meanwhile."
    )
    ramp: int = Field(default=0, ge=0, description="Student updates over which its weight then rises linearly.")
    loss: AdversarialKind = Field(default="non_saturating", description="non_saturating (DMD2's) or hinge.")
    r1_weight: float = Field(
        default=0.0, ge=0, description="Gradient penalty on real samples, by finite difference; 0 = off."
    )
    features: Literal["fake_score", "teacher"] = Field(
        default="fake_score",
        description="Whose blocks the head sees: fake_score (DMD2) or teacher. Never trained by it.",
    )
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Which blocks, 0 the first. Default: a quarter, a half and three quarters of the way.",
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="The head's, which starts from nothing.")
    real: str = Field(
        default="teacher",
        min_length=1,
        description='What is real: "teacher", its guided samples of the training prompts, or a folder of images (png, '
        "jpg), whose prompts stand in metadata.jsonl or NAME.txt.",
    )
    num_real: int = Field(
        default=1024, ge=1, description="How many samples of the teacher are drawn, once; of a folder all images count."
    )

    @model_validator(mode="after")
    def _each_once(self):
        if self.blocks is not None and len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"adversarial.blocks must name each block once, got {list(self.blocks)}")
        return self


class ObjectiveConfig(BaseModel):
    """What the student learns from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["dmd", "dp_dmd", "dmd_perceptual", "dmd_adversarial"] = Field(
        default="dp_dmd", description="dmd, dp_dmd, dmd_perceptual or dmd_adversarial."
    )
    normalisation: Literal["dmd2", "dpdmd"] = Field(default="dpdmd", description="Norm of the DMD gradient.")
    tau_low: float = Field(default=0.02, ge=0, lt=1, description="Least noise of the score comparison.")
    tau_high: float = Field(default=0.98, gt=0, le=1, description="Most noise of the score comparison.")
    tau_shift: float = Field(default=1.0, gt=0, description="Shift of tau toward noise; 1 = uniform.")
    guidance_interval: Interval = Field(default=(0.0, 1.0), description="Noise interval of the real score's guidance.")
    guidance_weight: float = Field(
        default=1.0,
        ge=0,
        description="Of the part of the DMD gradient that guidance adds, beside matching the teacher.",
    )
    guidance_tau: Interval | None = Field(
        default=None, description="Noise levels [low, high] of that part alone, one more call. Default: the same draw."
    )
    anchor: AnchorConfig = AnchorConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()

    @property
    def num_pairs(self) -> int | None:
        """Of the pool that the student's noise comes from; None: new noise."""
        return self.perceptual.num_pairs if self.name == "dmd_perceptual" else None

    @model_validator(mode="after")
    def _ordered(self):
        if self.tau_low >= self.tau_high:
            raise ValueError(f"tau_low must be below tau_high, got {self.tau_low} and {self.tau_high}")
        for name in ("guidance_interval", "guidance_tau"):
            low, high = getattr(self, name) or (0.0, 1.0)
            if not 0 <= low < high <= 1:
                raise ValueError(f"{name} must be [low, high] with 0 <= low < high <= 1, got [{low}, {high}]")
        return self


def anchor_stops(config: AnchorConfig, student_grid: Grid, teacher_grid: Grid) -> tuple[int, ...]:
    """K_1 ... K_m: from their number, from their time, or from where the student's first m steps land.

    Raises ValueError unless every K is below the number of teacher steps and less noisy than where its step starts.
    """
    if config.depth >= student_grid.num_steps:
        raise ValueError(
            f"anchor.depth must leave DMD a step: below student.num_steps {student_grid.num_steps}, got {config.depth}"
        )
    if config.steps is not None and not config.steps < teacher_grid.num_steps:
        raise ValueError(f"anchor.steps must be below the teacher's {teacher_grid.num_steps} steps, got {config.steps}")
    if config.steps is not None:
        stops = (config.steps,)
    elif config.time is not None:
        stops = (anchor_steps(teacher_grid, config.time),)
    else:
        stops = tuple(anchor_steps(teacher_grid, t) for t in student_grid.times[1 : config.depth + 1])
    ahead = all(teacher_grid.times[k] < t for k, t in zip(stops, student_grid.times, strict=False))
    if not ahead or list(stops) != sorted(set(stops)):
        raise ValueError(
            f"the teacher's {teacher_grid.num_steps} steps are too few for anchor.depth {config.depth}: its steps "
            f"{', '.join(map(str, stops))} are nearest to where the student's land"
        )
    return stops


def build_objective(
    config: ObjectiveConfig,
    *,
    guidance_scale: float,
    student_grid: Grid,
    teacher_grid: Grid,
    guidance_rule: GuidanceRule = linear_rule,
    samples_per_prompt: int = 1,
    pictures: Pictures | None = None,
) -> Objective:
    """The terms and the gradient routing of an objective; `pictures` are for dmd_perceptual alone.

    Raises ValueError for impossible settings.
    """
    if config.anchor.variation_weight > 0 and samples_per_prompt < 2:
        raise ValueError("anchor.variation_weight compares samples of one prompt: set train.samples_per_prompt >= 2")
    dmd = Dmd(
        guidance=Guidance(guidance_scale, config.guidance_interval, guidance_rule),
        tau_low=config.tau_low,
        tau_high=config.tau_high,
        tau_shift=config.tau_shift,
        normalisation=config.normalisation,
        guidance_weight=config.guidance_weight,
        guidance_tau=config.guidance_tau,
    )
    if config.name == "dmd":
        return Objective(terms=(dmd,), detach_after=0)
    if config.name == "dmd_adversarial":
        adversarial = Adversarial(
            kind=config.adversarial.loss,
            tau_low=config.tau_low,
            tau_high=config.tau_high,
            weight=config.adversarial.weight,
        )
        ramp = Ramp(config.adversarial.start, config.adversarial.ramp)
        return Objective(terms=(dmd, adversarial), detach_after=0, ramps={adversarial.name: ramp})
    if student_grid.times[0] != teacher_grid.times[0]:
        raise ValueError(
            f"{config.name} needs student and teacher to start at the same noise, got t = {student_grid.times[0]} and "
            f"{teacher_grid.times[0]}"
        )
    if config.name == "dmd_perceptual":
        perceptual = Perceptual(
            guidance=Guidance(guidance_scale, rule=guidance_rule),
            num_teacher_steps=teacher_grid.num_steps,
            distance=PerceptualDistance(config.perceptual.backbone, pictures.size),
            pictures=pictures,
            weight=config.perceptual.weight,
            is_kept=config.num_pairs is not None,
        )
        return Objective(terms=(dmd, perceptual), detach_after=0)
    if student_grid.num_steps < 2:
        raise ValueError(
            "dp_dmd needs student.num_steps >= 2: with one step, detached behind step 1, DMD would train nothing"
        )
    anchor_scale = guidance_scale if config.anchor.guidance_scale is None else config.anchor.guidance_scale
    anchor = DiversityAnchor(
        guidance=Guidance(anchor_scale, rule=guidance_rule),
        stops=anchor_stops(config.anchor, student_grid, teacher_grid),
        weight=config.anchor.weight,
        target=config.anchor.target,
        coarse_steps=config.anchor.coarse_steps,
        second_order=config.anchor.second_order,
        variation_weight=config.anchor.variation_weight,
        samples_per_prompt=samples_per_prompt,
    )
    return Objective(terms=(dmd, anchor), detach_after=config.anchor.depth, every={anchor.name: config.anchor.every})
