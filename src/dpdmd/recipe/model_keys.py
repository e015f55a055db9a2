"""The table [model] of a recipe: the teacher, what is merged into it, and how it is sampled."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dpdmd.recipe import bounds
from dpdmd.recipe.section import Place, Section, Text


class LoraSource(Section):
    """A LoRA of the teacher."""

    path: Place = Field(min_length=1, description="A .safetensors file, a folder with one, or a hub id.")
    weight: float = Field(
        default=1.0,
        ge=-bounds.SCALE,
        le=bounds.SCALE,
        description="Factor of what it adds, as `set_adapters` of diffusers takes it. Default: 1.",
    )

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("must not be 0, which would leave the LoRA out; delete it instead")
        return weight


class ImageSize(Section):
    """One of the sizes that a run trains."""

    height: int = Field(ge=1, le=bounds.SIDE, description="Image height in pixels.")
    width: int = Field(ge=1, le=bounds.SIDE, description="Image width in pixels.")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=bounds.LARGEST,
        description="Share of the updates, relative to the other sizes. Default: 1.",
    )


class ModelConfig(Section):
    """The teacher, and how it is sampled."""

    teacher: Place = Field(
        min_length=1, description='Pipeline folder, hub id, or a built-in teacher ("scenes", "scenes_eps", "drawings").'
    )
    loras: tuple[LoraSource, ...] = Field(
        default=(),
        max_length=bounds.STEPS,
        description="LoRAs that are merged into its network, so that together they are the teacher: "
        '[{path = "style.safetensors", weight = 0.8}]. Default: none.',
    )
    dtype: Literal["fp32", "bf16", "int8", "fp8", "nf4"] = Field(
        default="fp32",
        description="Number format of the teacher's frozen weights; trained weights are always fp32. int8 "
        "(torchao), fp8 and nf4 (4 bits, bitsandbytes) require adapters for both roles.",
    )
    height: int | None = Field(
        default=None, ge=1, le=bounds.SIDE, description="Image height in pixels. Default: the teacher's."
    )
    width: int | None = Field(
        default=None, ge=1, le=bounds.SIDE, description="Image width in pixels. Default: the teacher's."
    )
    sizes: tuple[ImageSize, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=bounds.STEPS,
        description="Several sizes [height, width] in pixels instead of one: [[1024, 1024], [832, 1216]], or with "
        "shares of the updates [{height = 1024, width = 1024, weight = 2}, ...]. Each update has one of them. Default: "
        "one size.",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=bounds.SCALE,
        description="Classifier-free guidance of the teacher, 1 = off. Default: the model family's.",
    )
    negative_prompt: Text = Field(
        default="",
        description="What the teacher is guided away from; baked into the student, which takes none itself. It needs "
        "guidance_scale > 1. Default: none.",
    )
    num_inference_steps: int | None = Field(
        default=None,
        ge=2,
        le=bounds.STEPS,
        description="Number of steps of the teacher's grid. Default: the model family's.",
    )
    embedded_guidance: float | None = Field(
        default=None,
        ge=0,
        le=bounds.SCALE,
        description="Guidance input of a guidance-distilled teacher such as FLUX.1-dev. Default: the family's, 3.5.",
    )

    @model_validator(mode="after")
    def _both_sides(self):
        sides = [[size.height, size.width] for size in self.sizes or ()]
        if sides and (self.height, self.width) != (None, None):
            raise ValueError(
                f"set sizes, or height and width, not both, got sizes {sides}, height {self.height} and width "
                f"{self.width}; an override without a value, such as model.height=, takes a key out"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError(f"set height and width, or neither, got height {self.height} and width {self.width}")
        if any(sides.count(size) > 1 for size in sides):
            raise ValueError(f"sizes must differ, got {sides}")
        return self

    @property
    def image_sizes(self) -> tuple[tuple[int | None, int | None], ...]:
        """(height, width) of every size; (None, None) for the teacher's own."""
        return tuple((size.height, size.width) for size in self.sizes or ()) or ((self.height, self.width),)
