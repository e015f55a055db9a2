"""What becomes of runs: `report`, `compare`, `export`."""

from pathlib import Path
from typing import Annotated

import typer

from dpdmd.cli.options import Overrides

app = typer.Typer()


@app.command(epilog="Example: dpdmd report runs/dmd runs/dp_dmd --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or a folder of run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Put runs side by side in one self-contained HTML page."""
    from dpdmd.report.build import report_from_runs

    typer.echo(f"report: {report_from_runs(list(runs), out)}")


@app.command(
    epilog="Example: dpdmd compare scenes_dmd scenes_dp_dmd --seeds 0-4 --budget '600 seconds' --jobs 2. "
    "An arm may change keys of its recipe, behind a colon and parted by commas: dpdmd compare scenes_dp_dmd "
    "scenes_dp_dmd:objective.anchor.depth=2,train.random_step=true --name plain --name deep --budget '150 steps'. "
    "Quote it where a value has brackets or spaces: 'scenes_dmd:train.betas=[0.9, 0.99]'."
)
def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...", help="TOML files or shipped names, each with :KEY=VALUE,KEY=VALUE behind it if wanted."
        ),
    ],
    budget: Annotated[
        str, typer.Option(help='Of every run: "150 steps" (student updates) or "600 seconds" (of training).')
    ],
    name: Annotated[
        list[str] | None, typer.Option(help="What to call an arm; once for each recipe, in order. Default: by recipe.")
    ] = None,
    seeds: Annotated[str, typer.Option(help='Training seeds: "0-4" or "0,2,5".')] = "0-4",
    out: Annotated[Path, typer.Option(help="Folder for runs, images, comparison.json and report.html.")] = Path(
        "runs/compare"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each with its share of the cores or a GPU.")] = 1,
    overrides: Overrides = None,
    guidance: Annotated[
        str, typer.Option(help='Guidance scales at which the teacher is drawn beside them; "" for none.')
    ] = "1,2,3.5,5,8",
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line. Default: those of the built-in world.")
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=2, help="Images per prompt.")] = 16,
    features: Annotated[str, typer.Option(help="As of `dpdmd evaluate`.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images sampled at once; changes speed and memory only.")
    ] = None,
) -> None:
    """Train several recipes with several seeds under one budget and put them side by side in one report.

    Called again it goes on where it was interrupted.
    """
    from dpdmd.compare.arms import parse_budget, parse_scales, parse_seeds

    seed_numbers, limit, scales = parse_seeds(seeds), parse_budget(budget), parse_scales(guidance)

    from dpdmd.compare.engine import compare_recipes
    from dpdmd.data.prompts import read_prompts

    compare_recipes(
        recipes,
        out,
        names=name or [],
        seeds=seed_numbers,
        budget=limit,
        sets=overrides or [],
        guidance=scales,
        prompts=list(dict.fromkeys(read_prompts(prompts))) if prompts else None,
        images_per_prompt=images_per_prompt,
        features=features,
        batch_size=batch_size,
        jobs=jobs,
    )


@app.command(epilog="Example: dpdmd export runs/demo/dp_dmd --out my_student --push-to-hub me/my_student --private")
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder of a finished training, or its students/best.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy what the student shares with its base instead of hard-linking it.")
    ] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write the LoRA alone, for `load_lora_weights`, not merged into a pipeline.")
    ] = False,
    metrics: Annotated[
        Path | None, typer.Option(help="JSON file of `dpdmd evaluate` for the card. Default: RUN/metrics.json, if any.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Licence, by its hub id. Default: the base model's.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this model repository as well.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Write a run's student, with a model card, as a pipeline folder (or a LoRA) that stock diffusers loads."""
    if private and push_to_hub is None:
        raise ValueError("--private is about an upload: give --push-to-hub OWNER/NAME, or leave it out")

    from dpdmd.publish.export import export_run

    if push_to_hub is not None:
        from dpdmd.publish.hub import push_folder, require_login

        require_login(push_to_hub)
    export_run(run, out, copy=copy, lora=lora, metrics=metrics, license=license, repo_id=push_to_hub)
    typer.echo(f"{'LoRA' if lora else 'pipeline'}: {out}")
    if push_to_hub is not None:
        typer.echo(f"hub: {push_folder(out, push_to_hub, private=private)}")
