"""Commands that take or write a recipe: `recipes`, `new`, `plan`, `train`, `config`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dpdmd.cli.options import LORA, Overrides, RecipeName, number
from dpdmd.cli.places import place
from dpdmd.recipe import bounds

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
        bool, typer.Option("--dry-run", help="Check everything, print what `dpdmd plan` prints, and train nothing.")
    ] = False,
) -> None:
    """Train a student.

    Ctrl-C (exit code 130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) save a checkpoint first.
    """
    from dpdmd.distributed.environment import require_neutral_environment

    require_neutral_environment()  # before libraries read it

    from dpdmd.recipe.schema import NO_CACHE
    from dpdmd.recipe.toml import flatten, load_recipe

    settings = load_recipe(recipe, [*(overrides or []), *([f"data.cache={NO_CACHE}"] if no_cache else [])])

    from dpdmd.training.public import train as run_training
    from dpdmd.training.run.folder import RunFolder
    from dpdmd.training.run.trackers import require_trackers

    require_trackers(settings.output.trackers)
    if dry_run:
        from dpdmd.planning.answer import costs

        typer.echo(costs(settings))
        return
    RunFolder(settings.output.folder).refuse_if_unusable(flatten(settings), resume=resume, overwrite=overwrite)
    run = run_training(settings, resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") == "0":
        from dpdmd.training.ending import ending

        typer.echo(ending(RunFolder(run.folder)))


@app.command(epilog="Example: dpdmd plan sd35_medium_dp_dmd --memory 80 --nodes 8 --gpus 8 --link 400")
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=bounds.GIBIBYTES,
            callback=number,
            metavar="GIB",
            help="Memory of the device. Default: this machine's.",
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, max=bounds.COUNT, metavar="N", help="Machines to spread a run over.")
    ] = 1,
    gpus: Annotated[int, typer.Option(min=1, max=bounds.COUNT, metavar="N", help="GPUs of each machine.")] = 1,
    link: Annotated[
        float,
        typer.Option(
            min=0.001, max=bounds.LARGEST, callback=number, metavar="GBIT", help="Gbit/s of one machine to others."
        ),
    ] = 400.0,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model as well, and measure a few updates on this machine.")
    ] = False,
) -> None:
    """Report what a training will cost, whether it fits a device, and what makes it fit. Reads no weights."""
    from dpdmd.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or [])

    from dpdmd.planning.answer import costs
    from dpdmd.planning.fit import has_gpu
    from dpdmd.planning.traffic import Cluster

    cluster = Cluster(nodes, gpus, link) if nodes * gpus > 1 else None
    typer.echo(costs(settings, memory=memory, cluster=cluster))

    if calibrate:
        from dpdmd.recipe.resolve import resolve
        from dpdmd.recipe.teacher import teacher_adapter
        from dpdmd.training.calibrate import describe_calibration

        adapter = teacher_adapter(settings.model)
        typer.echo(describe_calibration(resolve(settings, adapter), adapter))
    elif has_gpu():
        typer.echo("seconds: --calibrate loads the model and measures a few updates on this machine")


@app.command()
def recipes() -> None:
    """List the shipped recipes, which `train`, `plan` and `config` take by name."""
    from dpdmd.recipe.toml import shipped_recipes, summary

    width = max(map(len, shipped_recipes()))
    for name in shipped_recipes():
        typer.echo(f"{name:<{width}}  {summary(name)}")


@app.command(epilog="Example: dpdmd new my_model --out my.toml --memory 24")
def new(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Pipeline folder, hub id, or a .safetensors file with --base.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="FILE", help="Recipe to write; it must not exist.")],
    memory: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=bounds.GIBIBYTES,
            callback=number,
            metavar="GIB",
            help="Memory of the device. Default: this machine's GPU, else 24.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=8, help="Number of steps of the student.")] = 4,
    lora: Annotated[list[str] | None, LORA] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a .safetensors file: folder or hub id of the pipeline it was made from."),
    ] = None,
    adapters: Annotated[
        bool | None,
        typer.Option("--adapters/--full", help="Train LoRA adapters or all weights. Default: all weights if they fit."),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(min=1, max=bounds.COUNT, metavar="N", help="Devices of that memory; several share each network."),
    ] = 1,
) -> None:
    """Write a complete, commented recipe for a model, which fits the memory of a device.

    It reads the model's configurations and no weights, and works offline for the models of the shipped recipes.

    A single file is turned into a pipeline folder next to the recipe first, once.
    """
    from dpdmd.planning.write import default_memory, write_recipe

    gib = default_memory() if memory is None else memory
    trained = None if adapters is None else "adapters" if adapters else "all"
    loras = lora or []
    write_recipe(model, out, memory=gib, num_steps=steps, base=base, trained=trained, loras=loras, num_devices=gpus)
    several = f" --gpus {gpus}" if gpus > 1 else ""
    start = f"torchrun --nproc-per-node={gpus} -m dpdmd" if gpus > 1 else "dpdmd"
    typer.echo(
        f"recipe: {out}\nwhat it costs: dpdmd plan {out} --memory {gib:g}{several}\ntrain it: {start} train {out}"
    )


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
