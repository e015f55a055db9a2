"""Arguments and options shared by several commands.

Those in capitals stand in an `Annotated` with the type and the default that a command gives them.
"""

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, shipped recipe, or run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a recipe key; may be given several times."),
]
BATCH_SIZE = typer.Option(min=1, help="Images per batch; affects only speed and memory, not the images.")
SEVERAL_IMAGES = typer.Option(min=2, help="Number of images per prompt.")
AS_EVALUATE = typer.Option(metavar="NAME", help="As for `dpdmd evaluate`.")
