"""What draws images and scores them: `sample`, `evaluate`, `audit`."""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog='Example: dpdmd sample runs/demo/dp_dmd --prompt "a red circle" --images-per-prompt 9 --out images')
def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Pipeline folder, hub id, run folder or export.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNGs and manifest.json.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given repeatedly.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt per line.")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps. Default: the model's own; a student's cannot be changed.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, help="Guidance, 1 = off. Default: the model's own; 1 for a student.")
    ] = None,
    teacher_first: Annotated[
        bool,
        typer.Option(
            "--teacher-first",
            help="The student's teacher instead of its first step, with the steps and guidance given here.",
        ),
    ] = False,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of each prompt's first image; the others count up.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; changes speed and memory only.")] = 32,
) -> None:
    """Draw images: PNGs and a manifest.json naming prompt, seed and file of each.

    Called again it goes on where it was interrupted; started by torchrun, each process draws a share.
    """
    from dpdmd.data.prompts import read_prompts

    texts = list(prompt or []) + (read_prompts(prompts) if prompts else [])
    if not texts:
        raise ValueError("nothing to draw: give --prompt TEXT or --prompts FILE")

    from dpdmd.evaluate.generate import generate_folder

    generate_folder(
        model,
        list(dict.fromkeys(texts)),
        out=out,
        seeds=list(range(seed, seed + images_per_prompt)),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        teacher_first=teacher_first,
        batch_size=batch_size,
    )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"images: {out}")


@app.command(epilog="Example: dpdmd evaluate images --reference teacher_images --quality clip_score --out metrics.json")
def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of images with manifest.json, or a sub-folder per prompt.")
    ],
    reference: Annotated[Path | None, typer.Option(help="The teacher's images for the same prompts and seeds.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("metrics.json"),
    features: Annotated[
        list[str] | None,
        typer.Option(
            help='"scenes", a vision model\'s folder or hub id, or "auto" (default) to choose by the prompts. May be '
            "given repeatedly: the first is the main one."
        ),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(help='Take the LPIPS-type distance too, by "scenes", a .safetensors file, or a vision model.'),
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHTS]",
            help="Score single images: clip_score, clip_iqa, pick_score, hps_v21, image_reward, "
            "visual_quality_r1 or maniqa; WEIGHTS a folder or hub id. May be given repeatedly.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which features and scores are kept. Default: in the user's cache.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep and use no features and scores.")] = False,
) -> None:
    """Score a folder of images: diversity, as a share of the reference's too, and quality."""
    if no_cache and cache is not None:
        raise ValueError("--cache and --no-cache exclude each other")

    from dpdmd.evaluate.run import evaluate_folder, lines
    from dpdmd.store.cache import cache_folder

    metrics = evaluate_folder(
        folder,
        reference=reference,
        features=features or "auto",
        perceptual=perceptual,
        quality=quality or [],
        out=out,
        cache=None if no_cache else cache or cache_folder("images"),
    )
    for line in lines(metrics):
        typer.echo(line)
    typer.echo(f"metrics: {out}")


@app.command(
    epilog="Example: dpdmd audit them/few-step-model --teacher them/model --prompts prompts.txt --num-inference-steps 4"
)
def audit(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Any diffusers pipeline or LoRA of the teacher's (folder, file, hub id)."),
    ],
    teacher: Annotated[str, typer.Option(help="What it was distilled from: pipeline folder, hub id or built-in name.")],
    out: Annotated[Path, typer.Option(help="Folder for images, metrics and report.html.")] = Path("runs/audit"),
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line. Default: those of the built-in world.")
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=2, help="Images per prompt.")] = 9,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Steps of MODEL. Default: its own.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Guidance of MODEL, as its pipeline takes it. Default: its own.")
    ] = None,
    features: Annotated[list[str] | None, typer.Option(help="As of `dpdmd evaluate`.")] = None,
    perceptual: Annotated[str | None, typer.Option(help="As of `dpdmd evaluate`.")] = None,
    quality: Annotated[list[str] | None, typer.Option(metavar="NAME[=WEIGHTS]", help="As of `dpdmd evaluate`.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; changes speed and memory only.")] = 32,
) -> None:
    """Draw a student that nobody here trained and its teacher, score it against the teacher, and write a report.

    Called again it goes on where it was interrupted.
    """
    from dpdmd.audit import audit as run_audit
    from dpdmd.data.prompts import read_prompts

    report = run_audit(
        model,
        teacher,
        out=out,
        prompts=list(dict.fromkeys(read_prompts(prompts))) if prompts else None,
        images_per_prompt=images_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        features=features or "auto",
        perceptual=perceptual,
        quality=quality or [],
        batch_size=batch_size,
    )
    typer.echo(f"report: {report}")
