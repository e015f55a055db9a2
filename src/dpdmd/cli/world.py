"""The built-in world: `pretrain-teacher`, `demo`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


class Stage(StrEnum):
    """Parts of the built-in teachers that can be trained one by one."""

    all = "all"
    autoencoder = "autoencoder"
    text = "text"
    transformer = "transformer"
    unet = "unet"
    assemble = "assemble"
    features = "features"
    card = "card"


@app.command(
    "pretrain-teacher",
    epilog="Example: dpdmd pretrain-teacher --out runs/teacher --stage autoencoder",
)
def pretrain_teacher(
    out: Annotated[Path, typer.Option(help="Folder to write to; stages finished there are not repeated.")],
    stage: Annotated[Stage, typer.Option(help="Train one part only.")] = Stage.all,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share a batch of the denoising networks.")] = 2,
    scale: Annotated[float, typer.Option(help="Multiplies every number of steps, for a quick look.")] = 1.0,
) -> None:
    """Make the built-in teachers again, from scratch (hours)."""
    from dpdmd.world.pretrain.run import pretrain

    typer.echo(f"teachers in {pretrain(out, stage=stage.value, seed=seed, processes=processes, scale=scale)}")


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
