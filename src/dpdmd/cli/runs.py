"""Commands that use finished runs, or start several: `report`, `compare`, `export`."""

from pathlib import Path
from typing import Annotated

import typer

from dpdmd.cli.options import AS_EVALUATE, BATCH_SIZE, SEVERAL_IMAGES, Overrides
from dpdmd.cli.places import place
from dpdmd.recipe import bounds

app = typer.Typer()


@app.command(epilog="Example: dpdmd report runs/dmd runs/dp_dmd --out report.html")
def report(
    runs: Annotated[
        list[Path], typer.Argument(parser=place, metavar="RUN", help="Run folders, or a folder of run folders.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="FILE", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Compare runs in one self-contained HTML page."""
    from dpdmd.report.build import report_from_runs

    typer.echo(f"report: {report_from_runs(list(runs), out)}")


@app.command(
    epilog="\b\nExample: dpdmd compare scenes_dmd scenes_dp_dmd --seeds 0-4 --budget '600 seconds' --jobs 2\n\n"
    "Keys of a single recipe are overridden after a colon, separated by commas; quote the argument if a value contains "
    "brackets or spaces:\n\n"
    "\b\n"
    "dpdmd compare scenes_dp_dmd scenes_dp_dmd:objective.anchor.steps=8,train.random_step=true \\\n"
    "  --name K15 --name K8 --budget '150 steps'\n"
    "dpdmd compare scenes_dmd 'scenes_dmd:train.betas=[0.9, 0.99]' --name plain --name betas --budget '150 steps'"
)
def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE",
            help="TOML files or names of shipped recipes, each optionally followed by :KEY=VALUE,KEY=VALUE.",
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(
            metavar="LENGTH", help='Length of every run: "150 steps" (student updates) or "600 seconds" (of training).'
        ),
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of an arm; give one per recipe, in the same order. Default: named after the recipe.",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", help='Training seeds: a range "0-4" or a list "0,2,5".')
    ] = "0-4",
    out: Annotated[
        Path,
        typer.Option(
            parser=place, metavar="DIR", help="Folder to write runs, images, comparison.json and report.html to."
        ),
    ] = Path("runs/compare"),
    jobs: Annotated[
        int,
        typer.Option(
            min=1, max=bounds.STEPS, help="Number of parallel runs; each gets a GPU or a share of the CPU cores."
        ),
    ] = 1,
    overrides: Overrides = None,
    guidance: Annotated[
        str,
        typer.Option(
            metavar="SCALES", help='Guidance scales at which the teacher is sampled for comparison; "" for none.'
        ),
    ] = "1,2,3.5,5,8",
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="Text file with one prompt per line. Default: the evaluation prompts of the built-in world.",
        ),
    ] = None,
    images_per_prompt: Annotated[int, SEVERAL_IMAGES] = 16,
    features: Annotated[str, AS_EVALUATE] = "auto",
    batch_size: Annotated[int | None, BATCH_SIZE] = None,
) -> None:
    """Train several recipes with several seeds and compare them.

    All runs have the same budget. The result is one report with intervals over the seeds.

    If the command was interrupted, run it again to continue.
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


@app.command(epilog="\b\nExample: dpdmd export runs/demo/dp_dmd --out my_student --push-to-hub me/my_student --private")
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder (its best student, else its newest), RUN@STEP, or the folder of a student or checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="Folder to write; it must not exist.")],
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Write only the LoRA, for diffusers and ComfyUI, instead of merging it."),
    ] = False,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="With --lora: leave out the LoRAs of the teacher (model.loras), to be loaded beside it.",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Weights as fp32, bf16 or fp16. Default: as the base model is stored.",
        ),
    ] = None,
    one_file: Annotated[
        bool,
        typer.Option(
            "--one-file",
            help="For ComfyUI: write a network of up to 20 GB as one file, and comfyui_student.safetensors where "
            "ComfyUI reads another layout. Default: files of at most 10 GB.",
        ),
    ] = False,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link the files shared with the base model instead of copying them: editing one edits the other.",
        ),
    ] = False,
    metrics: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="JSON file of `dpdmd evaluate` for the model card. Default: RUN/metrics.json if it exists.",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Licence of the student, as an identifier of the hub. Default: the base model's."
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload the folder to this model repository."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository on the hub private.")] = False,
) -> None:
    """Write a run's student as a folder that stock diffusers loads.

    The folder contains a complete pipeline, or with --lora only the LoRA, and a model card.
    """
    if private and push_to_hub is None:
        raise ValueError("--private needs an upload: give --push-to-hub OWNER/NAME, or remove --private")

    from dpdmd.models.find import located
    from dpdmd.publish.export import export_run

    if push_to_hub is not None:
        from dpdmd.publish.hub import push_folder, require_login

        require_login(push_to_hub)
    export_run(
        Path(located(run)),
        out,
        lora=lora,
        alone=alone,
        dtype=dtype,
        one_file=one_file,
        link=link,
        metrics=metrics,
        license=license,
        repo_id=push_to_hub,
    )
    typer.echo(f"{'LoRA' if lora else 'pipeline'}: {out}")
    if push_to_hub is not None:
        typer.echo(f"hub: {push_folder(out, push_to_hub, private=private)}")
