"""The whole way once: `demo`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: dpdmd demo --out runs/demo --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for students, images, metrics.json and report.html.")] = Path(
        "runs/demo"
    ),
    updates: Annotated[int | None, typer.Option(min=1, help="Student updates. Default: the demo recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the report in a browser.")] = False,
) -> None:
    """Distil the built-in teacher by DMD and by DP-DMD, score both, and write a report (minutes on two CPU cores)."""
    from dpdmd.demo import run_demo

    run_demo(out, seed=seed, updates=updates, open_browser=open_browser)
