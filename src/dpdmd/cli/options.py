"""Arguments and options shared by several commands.

Those in capitals stand in an `Annotated` with the type and the default that a command gives them.
"""

import math
from typing import Annotated

import typer

from dpdmd.recipe import bounds

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, shipped recipe, or run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a recipe key; may be given several times."),
]
BATCH_SIZE = typer.Option(
    min=1, max=bounds.COUNT, help="Images per batch; affects only speed and memory, not the images."
)
LORA = typer.Option(
    metavar="PATH[:WEIGHT]",
    help="LoRA that is merged into the teacher: a .safetensors file, a folder with one, or a hub id. May be given "
    "several times. Default weight: 1.",
)
SEVERAL_IMAGES = typer.Option(min=2, max=bounds.COUNT, help="Number of images per prompt.")
AS_EVALUATE = typer.Option(metavar="NAME", help="As for `dpdmd evaluate`.")


def number(value: float | None) -> float | None:
    """The value of an option, unless it is NaN, which no bounds refuse."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value
