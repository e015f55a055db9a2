"""Commands that generate and score images: `sample`, `evaluate`, `audit`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dpdmd.cli.options import AS_EVALUATE, BATCH_SIZE, LORA, SEVERAL_IMAGES, number
from dpdmd.cli.places import place
from dpdmd.recipe import bounds

app = typer.Typer()


@app.command(
    epilog='\b\nExample: dpdmd sample runs/demo/dp_dmd --prompt "a red circle" --images-per-prompt 9 --out images'
)
def sample(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Built-in teacher (scenes, scenes_eps, drawings), pipeline folder, hub id or exported student; run "
            "folder (its best student, else its newest), RUN@STEP, or the folder of a student or checkpoint.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(parser=place, metavar="DIR", help="Folder to write the PNG files and manifest.json to.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Prompt; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(parser=place, metavar="FILE", help="Text file with one prompt per line.")
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        typer.Option(min=1, max=bounds.STEPS, help="Number of steps; fixed for a student. Default: the model's own."),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=bounds.SCALE,
            callback=number,
            help="Classifier-free guidance scale; 1 = off. Default: the model's own, 1 for a student.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the guided teacher is guided away from. Default: nothing."),
    ] = None,
    lora: Annotated[list[str] | None, LORA] = None,
    teacher_first: Annotated[
        bool,
        typer.Option(
            "--teacher-first",
            help="Replace the student's first step by its teacher, sampled with --num-inference-steps and "
            "--guidance-scale.",
        ),
    ] = False,
    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounds.SIDE,
            help="Height of the images in pixels. Default: that of a student's training, a teacher's own.",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=1, max=bounds.SIDE, help="Width of the images in pixels. Default: as for the height."),
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, max=bounds.COUNT, help="Number of images per prompt.")] = 1,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=bounds.IMAGE_SEED,
            help="Seed of each prompt's first image; the next ones have seed + 1, seed + 2, ...",
        ),
    ] = 0,
    batch_size: Annotated[int, BATCH_SIZE] = 32,
) -> None:
    """Generate images with a teacher or a student.

    The output is a folder of PNG files and a manifest.json that lists prompt, seed and file of each image.

    If the command was interrupted, run it again to continue. Started with torchrun, each process generates a share of
    the images.
    """
    from dpdmd.data.prompts import read_prompts

    texts = list(prompt or []) + (read_prompts(prompts) if prompts else [])
    if not texts:
        raise ValueError("there are no prompts: give --prompt TEXT or --prompts FILE")

    from dpdmd.evaluate.generate import generate_folder
    from dpdmd.recipe.teacher import parse_lora

    generate_folder(
        model,
        list(dict.fromkeys(texts)),
        out=out,
        seeds=list(range(seed, seed + images_per_prompt)),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        loras=[parse_lora(text) for text in lora or []],
        teacher_first=teacher_first,
        height=height,
        width=width,
        batch_size=batch_size,
    )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"images: {out}")


@app.command(
    epilog="\b\nExample: dpdmd evaluate images --reference teacher_images --quality clip_score --out metrics.json"
)
def evaluate(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Folder of images with a manifest.json, or with one folder per prompt. Or a run, RUN@STEP or a "
            "checkpoint, whose student and teacher are then drawn.",
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="DIR", help="Folder with the teacher's images for the same prompts and seeds."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="JSON file to write. Default: metrics.json in the folder of a run, else in the working directory.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help='Network whose features measure diversity: "scenes", or a vision model\'s folder or hub id. May be '
            'given several times; the first one is the main one. Default: "auto", which chooses it by the prompts.',
        ),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help='Also measure the LPIPS-type distance, with "scenes", a .safetensors file of LPIPS weights, or a '
            "vision model.",
        ),
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHTS]",
            help="Also score the quality of each image with clip_score, clip_iqa, pick_score, hps_v21, image_reward, "
            "visual_quality_r1 or maniqa. WEIGHTS is a folder or hub id. May be given several times.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="DIR",
            help="Folder in which features and scores are cached. Default: in $DPDMD_CACHE or the user's cache.",
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="Of a run: text file with one prompt per line. Default: its validation's.",
        ),
    ] = None,
    images_per_prompt: Annotated[int, SEVERAL_IMAGES] = 9,
) -> None:
    """Score the diversity and quality of a folder of images.

    With --reference, diversity is also reported as a share of the reference's. Of a run the student's images are drawn
    first, and its teacher's as the reference. Images of several sizes are scored size by size.
    """
    (images, reference), further, run = _images(folder, reference, prompts, images_per_prompt)
    out = out or (run or Path()) / "metrics.json"
    if no_cache and cache is not None:
        raise ValueError("--cache and --no-cache exclude each other; give only one of them")

    from dpdmd.evaluate.in_words import lines
    from dpdmd.evaluate.run import evaluate_folder
    from dpdmd.store.cache import cache_folder

    metrics = evaluate_folder(
        images,
        reference=reference,
        further_sizes=further,
        features=features or "auto",
        perceptual=perceptual,
        quality=quality or [],
        out=out,
        cache=None if no_cache else cache or cache_folder("images"),
    )
    for line in lines(metrics if run is None else _with_speed(metrics, run)):
        typer.echo(line)
    typer.echo(f"metrics: {out}")


def _with_speed(metrics: dict[str, Any], run: Path) -> dict[str, Any]:
    """Metrics of a run with the times that were taken when its images were drawn."""
    from dpdmd.evaluate.speed import speed_metrics

    speed = speed_metrics(run)
    intervals = {**metrics.get("intervals", {}), **speed.pop("intervals", {})}
    return {**metrics, **speed, "intervals": intervals}


def _images(
    folder: str, reference: Path | None, prompts: Path | None, images_per_prompt: int
) -> tuple[tuple[Path, Path | None], list[tuple[Path, Path]], Path | None]:
    """The folder of images to score and its reference, those of further sizes, and the run, of which all are drawn."""
    from dpdmd.models.find import find_student, located

    given = Path(folder)
    is_student = "@" in folder if not given.is_dir() else find_student(given) is not None
    if not is_student or (given / "manifest.json").is_file():
        if prompts is not None:
            raise ValueError(f"--prompts is for a run, whose images are drawn; {folder} is a folder of images")
        return (given, reference), [], None
    if reference is not None:
        raise ValueError("--reference is for a folder of images; of a run the teacher's are drawn")
    from dpdmd.data.prompts import read_prompts
    from dpdmd.training.judge import draw_student_and_teacher

    texts = None if prompts is None else list(dict.fromkeys(read_prompts(prompts)))
    first, *further = draw_student_and_teacher(located(folder), texts, images_per_prompt=images_per_prompt)
    return first, further, first[0].parents[1]


@app.command(
    epilog="\b\n"
    "Example: dpdmd audit them/few-step-model --teacher them/model --prompts prompts.txt --num-inference-steps 4"
)
def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Few-step model: any diffusers pipeline, or a LoRA for the teacher (folder, file or hub id).",
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Model from which MODEL was distilled: pipeline folder, hub id or built-in teacher."
        ),
    ],
    out: Annotated[
        Path, typer.Option(parser=place, metavar="DIR", help="Folder to write images, metrics and report.html to.")
    ] = Path("runs/audit"),
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="Text file with one prompt per line. Default, for built-in teachers only: 24 scene prompts.",
        ),
    ] = None,
    images_per_prompt: Annotated[int, SEVERAL_IMAGES] = 9,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, max=bounds.STEPS, help="Number of steps of MODEL. Default: its pipeline's.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=bounds.SCALE,
            callback=number,
            help="Guidance scale of MODEL, as its pipeline defines it. Default: its pipeline's.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Negative prompt of MODEL. Default: none.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Scheduler of MODEL: a class of diffusers, which takes over the settings of the pipeline's own, or a "
            "folder or hub id with a scheduler_config.json. Default: the one beside a LoRA, else the pipeline's.",
        ),
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(metavar="LIST", help='Timesteps of MODEL, such as "999,749,499,249".')
    ] = None,
    sigmas: Annotated[
        str | None, typer.Option(metavar="LIST", help='Sigmas of MODEL, such as "1,0.9,0.75,0.5".')
    ] = None,
    teacher_num_inference_steps: Annotated[
        int | None, typer.Option(min=1, max=bounds.STEPS, help="Number of steps of the teacher. Default: its own.")
    ] = None,
    teacher_guidance_scale: Annotated[
        float | None,
        typer.Option(min=0, max=bounds.SCALE, callback=number, help="Guidance scale of the teacher. Default: its own."),
    ] = None,
    teacher_negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Negative prompt of the teacher. Default: none.")
    ] = None,
    teacher_lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:WEIGHT]",
            help="LoRA that is merged into the teacher, and into it under MODEL if that is a LoRA. May be given "
            "several times. Default: those that one of our students was trained with.",
        ),
    ] = None,
    teacher_scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="Scheduler of the teacher, as --scheduler. Default: its own.")
    ] = None,
    features: Annotated[list[str] | None, AS_EVALUATE] = None,
    perceptual: Annotated[str | None, AS_EVALUATE] = None,
    quality: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=WEIGHTS]", help="As for `dpdmd evaluate`.")
    ] = None,
    batch_size: Annotated[int, BATCH_SIZE] = 32,
) -> None:
    """Compare a few-step model trained elsewhere with its teacher.

    This generates images with both, scores them against the teacher's, and writes a report.

    If the command was interrupted, run it again to continue.
    """
    if timesteps is not None and sigmas is not None:
        raise ValueError("--timesteps and --sigmas exclude each other; give only one of them")
    times = None if timesteps is None else tuple(map(int, _numbers("--timesteps", timesteps)))
    levels = None if sigmas is None else tuple(_numbers("--sigmas", sigmas))

    from dpdmd.audit import audit as run_audit
    from dpdmd.data.prompts import read_prompts
    from dpdmd.evaluate.stock import Call
    from dpdmd.recipe.teacher import parse_lora

    report = run_audit(
        model,
        teacher,
        out=out,
        prompts=list(dict.fromkeys(read_prompts(prompts))) if prompts else None,
        images_per_prompt=images_per_prompt,
        call=Call(num_inference_steps, guidance_scale, negative_prompt, scheduler, times, levels),
        teacher_call=Call(
            teacher_num_inference_steps, teacher_guidance_scale, teacher_negative_prompt, teacher_scheduler
        ),
        teacher_loras=None if teacher_lora is None else [parse_lora(text) for text in teacher_lora],
        features=features or "auto",
        perceptual=perceptual,
        quality=quality or [],
        batch_size=batch_size,
    )
    typer.echo(f"report: {report}")


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) > bounds.STEPS or not all(0 <= value <= bounds.LARGEST for value in numbers):
        raise ValueError(f"{option} must be numbers separated by commas, got {text[:100]!r}")
    return numbers
