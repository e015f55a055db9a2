"""The command line. Every command imports what it needs itself, so that `--help` waits for none of it."""

import os
import sys
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dpdmd.train.config import Recipe

app = typer.Typer(
    name="dpdmd",
    help="Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

USER_ERROR = 2
STOPPED_ERROR = 1
DEBUG_VARIABLE = "DPDMD_DEBUG"


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


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key of the recipe; may be given repeatedly."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("dpdmd"))
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command(epilog="Example: dpdmd train recipe.toml --set train.num_updates=200 --set output.folder=runs/try")
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in the folder.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Encode prompts while training instead of once, ahead and on disk.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print grids, cost and memory, and train nothing.")
    ] = False,
) -> None:
    """Train a student. Ctrl-C (exit code 130) and SIGTERM (143) save a checkpoint first."""
    from dpdmd.train.config import NO_CACHE
    from dpdmd.train.recipe_file import load_recipe

    settings = load_recipe(recipe, [*(overrides or []), *([f"data.cache={NO_CACHE}"] if no_cache else [])])

    from dpdmd.models.load import load_adapter
    from dpdmd.train.best import read_best
    from dpdmd.train.cost import describe
    from dpdmd.train.loop import train as run_training
    from dpdmd.train.plan import make_plan
    from dpdmd.train.run_folder import RunFolder
    from dpdmd.train.trackers import require_trackers

    require_trackers(settings.output.trackers)
    if dry_run:
        from dpdmd.data.prompts import training_prompts

        adapter = load_adapter(settings.model.teacher)
        typer.echo(describe(make_plan(settings, adapter), settings, adapter))
        typer.echo(f"prompts: {len(training_prompts(settings.data.prompts, settings.data.column))}")
        return
    RunFolder(settings.output.folder).refuse_if_unusable(settings, resume=resume, overwrite=overwrite)
    folder = run_training(settings, load_adapter(settings.model.teacher), resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") == "0":
        for entry in read_best(RunFolder(folder).best)[:1]:
            typer.echo(f"best in validation: {RunFolder(folder).best}, of update {entry['step']}: {entry['why']}")
        typer.echo(f"student: {folder}\nsample it: dpdmd sample {folder} --prompt TEXT --out images")


@app.command(epilog="Example: dpdmd plan sd35_medium_dp_dmd --memory 24")
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    memory: Annotated[
        float | None, typer.Option(min=0, metavar="GIB", help="Memory of the device. Default: this machine's.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model as well, and measure a few updates on this machine.")
    ] = False,
) -> None:
    """Say what a training will cost, whether it fits a device, and what makes it fit. Reads no weights."""
    from dpdmd.train.recipe_file import load_recipe

    def load(further: tuple[str, ...]) -> "Recipe":
        return load_recipe(recipe, [*(overrides or []), *further])

    settings = load(())

    from dpdmd.data.prompts import training_prompts
    from dpdmd.models.load import load_adapter
    from dpdmd.train.cost import describe, embedding_bytes
    from dpdmd.train.fit import describe_calibration, describe_fit, device_memory, has_gpu, memory_need, savings
    from dpdmd.train.plan import make_plan

    adapter = load_adapter(settings.model.teacher)
    typer.echo(describe(make_plan(settings, adapter), settings, adapter))
    prompts = set(training_prompts(settings.data.prompts, settings.data.column))
    size = len(prompts) * embedding_bytes(settings, adapter)
    typer.echo(f"prompts: {len(prompts)} different, at most {size / 2**30:.2f} GiB of embeddings on disk")
    device = device_memory() if memory is None else round(memory * 2**30)
    count = cache(partial(memory_need, adapter=adapter))
    typer.echo(describe_fit(count(settings), device, savings(load, count, device)))
    if calibrate:
        typer.echo(describe_calibration(settings, adapter))
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
    from dpdmd.train.recipe_file import describe_recipe, dump_recipe, load_recipe, shipped_recipes

    if recipe is not None:
        typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)
        return
    if overrides:
        raise ValueError("--set changes a recipe: name one, as in dpdmd config recipe.toml --set train.seed=1")
    typer.echo(describe_recipe())
    typer.echo(f"\n# Shipped recipes: {', '.join(shipped_recipes()) or 'none'}")


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

    from dpdmd.evaluate.cache import default_folder
    from dpdmd.evaluate.run import evaluate_folder, lines

    metrics = evaluate_folder(
        folder,
        reference=reference,
        features=features or "auto",
        perceptual=perceptual,
        quality=quality or [],
        out=out,
        cache=None if no_cache else cache or default_folder(),
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

    from dpdmd.export import export_run

    if push_to_hub is not None:
        from dpdmd.hub import push_folder, require_login

        require_login(push_to_hub)
    export_run(run, out, copy=copy, lora=lora, metrics=metrics, license=license, repo_id=push_to_hub)
    typer.echo(f"{'LoRA' if lora else 'pipeline'}: {out}")
    if push_to_hub is not None:
        typer.echo(f"hub: {push_folder(out, push_to_hub, private=private)}")


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


def main() -> None:
    """Run the command line: what a user can mend is one line on stderr and exit code 2, without a traceback."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        # Their notices on optional packages that are missing would bury ours.
        os.environ.setdefault(name, "error")
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None or os.environ.get(DEBUG_VARIABLE):
            raise
        if code <= 128:
            print(f"error: {error}", file=sys.stderr)
        elif os.environ.get("RANK", "0") == "0":  # all processes stop together
            print(error, file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _exit_code(error: Exception) -> int | None:
    """2 for what the user gave, 1 for a run that cannot go on, 128 + signal; None for our own mistakes."""
    if isinstance(error, ValueError | FileNotFoundError):
        return USER_ERROR
    if isinstance(error, FloatingPointError | OSError):
        return STOPPED_ERROR
    return getattr(error, "exit_code", None)


if __name__ == "__main__":
    main()
