"""The command `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from dpdmd.cli.places import place
from dpdmd.recipe import bounds

app = typer.Typer()


@app.command(epilog="Example: dpdmd demo --out runs/demo --seed 1")
def demo(
    out: Annotated[
        Path,
        typer.Option(
            parser=place, metavar="DIR", help="Folder to write students, images, metrics.json and report.html to."
        ),
    ] = Path("runs/demo"),
    updates: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.UPDATES, help="Number of student updates. Default: that of the shipped recipes."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=bounds.SEED - 1, help="Seed of all random numbers.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the report in a browser.")] = False,
) -> None:
    """Distil the built-in teacher, score the students, write a report.

    One student is trained with DMD and one with DP-DMD. This takes minutes on two CPU cores.

    If the command was interrupted, run it again to continue.
    """
    from dpdmd.demo import run_demo

    run_demo(out, seed=seed, updates=updates, open_browser=open_browser)
