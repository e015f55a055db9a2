"""Commands that take a recipe: `train`, `plan`, `config`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from dpdmd.cli.options import Overrides, RecipeName

if TYPE_CHECKING:
    from dpdmd.recipe.schema import Recipe

app = typer.Typer()


@app.command(epilog="Example: dpdmd train recipe.toml --set train.num_updates=200 --set output.folder=runs/try")
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the last checkpoint of the run folder, or from the start if there is none."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in the folder.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Encode prompts while training instead of once, ahead and on disk.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print grids, cost and memory, and train nothing.")
    ] = False,
) -> None:
    """Train a student. Ctrl-C (exit code 130) and SIGTERM (143) save a checkpoint first."""
    from dpdmd.recipe.schema import NO_CACHE
    from dpdmd.recipe.toml import flatten, load_recipe

    settings = load_recipe(recipe, [*(overrides or []), *([f"data.cache={NO_CACHE}"] if no_cache else [])])

    from dpdmd.models.load import load_adapter
    from dpdmd.recipe.resolve import resolve
    from dpdmd.training.public import train as run_training
    from dpdmd.training.run.folder import RunFolder
    from dpdmd.training.run.trackers import require_trackers

    require_trackers(settings.output.trackers)
    if dry_run:
        from dpdmd.data.prompts import training_prompts
        from dpdmd.planning.cost import describe

        adapter = load_adapter(settings.model.teacher)
        typer.echo(describe(resolve(settings, adapter), adapter))
        typer.echo(f"prompts: {len(training_prompts(settings.data.prompts, settings.data.column))}")
        return
    RunFolder(settings.output.folder).refuse_if_unusable(flatten(settings), resume=resume, overwrite=overwrite)
    run = run_training(settings, resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") == "0":
        for entry in run.best()[:1]:
            folder = RunFolder(run.folder).best
            typer.echo(f"best in validation: {folder}, of update {entry['step']}: {entry['why']}")
        typer.echo(f"student: {run.folder}\nsample it: dpdmd sample {run.folder} --prompt TEXT --out images")


@app.command(epilog="Example: dpdmd plan sd35_medium_dp_dmd --memory 24")
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[
        float | None, typer.Option(min=0, metavar="GIB", help="Memory of the device. Default: this machine's.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model as well, and measure a few updates on this machine.")
    ] = False,
) -> None:
    """Report what a training will cost, whether it fits a device, and what makes it fit. Reads no weights."""
    from dpdmd.recipe.toml import load_recipe

    def load(further: tuple[str, ...]) -> "Recipe":
        return load_recipe(recipe, [*(overrides or []), *further])

    settings = load(())

    from dpdmd.data.prompts import training_prompts
    from dpdmd.models.load import load_adapter
    from dpdmd.planning.cost import describe, embedding_bytes
    from dpdmd.planning.fit import counter, describe_fit, device_memory, has_gpu, savings
    from dpdmd.recipe.resolve import resolve

    adapter = load_adapter(settings.model.teacher)
    resolved = resolve(settings, adapter)
    typer.echo(describe(resolved, adapter))
    prompts = set(training_prompts(settings.data.prompts, settings.data.column))
    size = len(prompts) * embedding_bytes(resolved, adapter)
    typer.echo(f"prompts: {len(prompts)} different, at most {size / 2**30:.2f} GiB of embeddings on disk")
    device = device_memory() if memory is None else round(memory * 2**30)
    count = counter(adapter)
    found = savings(lambda further: resolve(load(further), adapter), count, device)
    typer.echo(describe_fit(count(resolved), device, found))
    if calibrate:
        from dpdmd.training.calibrate import describe_calibration

        typer.echo(describe_calibration(resolved, adapter))
    elif has_gpu():
        typer.echo("seconds: --calibrate loads the model and measures a few updates on this machine")


@app.command(epilog="Example: dpdmd config recipe.toml --set student.num_steps=2")
def config(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="TOML file, or the name of a shipped recipe.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print every key of a recipe with default and meaning; with RECIPE, print that recipe with all defaults."""
    from dpdmd.recipe.toml import describe_recipe, dump_recipe, load_recipe, shipped_recipes

    if recipe is not None:
        typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)
        return
    if overrides:
        raise ValueError("--set changes a recipe: name one, as in dpdmd config recipe.toml --set train.seed=1")
    typer.echo(describe_recipe())
    typer.echo(f"\n# Shipped recipes: {', '.join(shipped_recipes()) or 'none'}")
