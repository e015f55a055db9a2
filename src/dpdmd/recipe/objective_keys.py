"""The table [objective] of a recipe: the objective, its noise levels, and the tables of its terms."""

import difflib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dpdmd.recipe import bounds
from dpdmd.recipe.section import Place, Section

OBJECTIVES = ("dmd", "dp_dmd", "dmd_perceptual", "dmd_adversarial")


class AnchorConfig(Section):
    """The diversity anchor of DP-DMD."""

    weight: float = Field(
        default=0.05,
        ge=0,
        le=bounds.LARGEST,
        description="lambda, the weight of the anchor's loss. 0.05 is the paper's; sweep it per model.",
    )
    every: int = Field(
        default=1,
        ge=1,
        le=bounds.UPDATES,
        description="Apply the anchor in every N-th student update, with weight N x lambda so that the average is "
        "unchanged.",
    )
    fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of the samples of each student update that the anchor sees; the others cost no teacher "
        "steps. Its mean weight stays lambda.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=bounds.STEPS,
        description="K, number of teacher steps to the anchor. Default: as many as lead to where the student's first "
        "step lands.",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=bounds.SCALE,
        description="Guidance of the anchor's teacher steps, 1 = off. Default: the teacher's.",
    )
    coarse_steps: int = Field(
        default=4,
        ge=1,
        le=bounds.STEPS,
        description="Take the K teacher steps in at most this many, evenly spread over them.",
    )
    second_order: bool = Field(
        default=True,
        description="Let each of these steps use the prediction before it: more accurate at the same number of calls.",
    )
    target: Literal["secant", "x0"] = Field(
        default="secant",
        description="What step 1 learns. secant: the line from z_0 to z_K, in the network's prediction space. x0: the "
        "teacher's x0 at z_K, in x0 space, whose loss is 213.6 times larger than in eps space for SDXL.",
    )


class PerceptualConfig(Section):
    """The perceptual rival of DP-DMD: the student's picture is pulled to the teacher's from the same noise."""

    weight: float = Field(
        default=0.25,
        ge=0,
        le=bounds.LARGEST,
        description="Weight of the perceptual distance. 0.25 is DMD's; sweep it per model.",
    )
    backbone: Place = Field(
        default="scenes",
        min_length=1,
        description='Network whose features are compared: "scenes" for the built-in teachers, a .safetensors file of '
        "LPIPS weights, or a folder or hub id of a transformers vision model.",
    )
    num_pairs: int | None = Field(
        default=None,
        ge=1,
        le=bounds.IMAGES,
        description="Train the student on this many fixed pairs of prompt and noise, whose teacher samples are kept in "
        "data.cache. Default: fresh noise, and the teacher's whole rollout, in every update.",
    )


class AdversarialConfig(Section):
    """The discriminator of DMD2, and what it asks of the student."""

    weight: float = Field(
        default=5e-3,
        gt=0,
        le=bounds.LARGEST,
        description="Weight of the student's adversarial loss. 5e-3 is DMD2's for SDXL; smaller latents need more.",
    )
    features: Literal["fake_score", "teacher"] = Field(
        default="fake_score",
        description="Network whose blocks the discriminator's head sees. Its loss never trains that network.",
    )
    learning_rate: float = Field(
        default=2e-3, gt=0, le=bounds.RATE, description="Learning rate of the discriminator's head."
    )
    real: Place = Field(
        default="teacher",
        min_length=1,
        description='What counts as real: "teacher", its guided samples of the training prompts, or a folder of images '
        "(png, jpg) with prompts in metadata.jsonl or NAME.txt.",
    )
    num_real: int = Field(
        default=1024,
        ge=1,
        le=bounds.COUNT,
        description="Number of teacher samples, drawn once. Of a folder all images are used.",
    )


def _known_objective(name: str) -> str:
    if name in OBJECTIVES or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    nearest = difflib.get_close_matches(name, OBJECTIVES, n=1)
    raise ValueError(
        f"must be one of {', '.join(OBJECTIVES)}, or MODULE:FUNCTION of your own"
        + (f"; did you mean {nearest[0]!r}?" if nearest else "")
    )


class ObjectiveConfig(Section):
    """What the student learns from."""

    name: Annotated[str, AfterValidator(_known_objective)] = Field(
        default="dp_dmd",
        description='The objective: dmd, dp_dmd, dmd_perceptual, dmd_adversarial, or "my_module:my_objective", a '
        "function of your own, which is imported.",
    )
    normalisation: Literal["dmd2", "dpdmd"] = Field(
        default="dpdmd",
        description="Norm that divides the DMD gradient. dmd2: mean |x - x0_real|. dpdmd: mean |x_tau - x0_real|.",
    )
    tau_low: float = Field(
        default=0.02, ge=0, lt=1, description="Lowest noise level at which scores are compared, from 0 (data) to 1."
    )
    tau_high: float = Field(default=0.98, gt=0, le=1, description="Highest noise level at which scores are compared.")
    tau_shift: float = Field(
        default=1.0,
        gt=0,
        le=bounds.SCALE,
        description="Time shift of these noise levels: above 1 compares at more noise. 1 = uniform.",
    )
    anchor: AnchorConfig = AnchorConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()

    @model_validator(mode="after")
    def _ordered(self):
        if self.tau_low >= self.tau_high:
            raise ValueError(f"tau_low must be below tau_high, got {self.tau_low} and {self.tau_high}")
        return self
