"""Audit a few-step model that was trained elsewhere: compare a diffusers pipeline or a LoRA with its teacher."""

from collections.abc import Sequence
from pathlib import Path

from dpdmd.data.prompts import evaluation_prompts_of
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.stock import generate_with_stock
from dpdmd.models.find import find_student
from dpdmd.models.load import BUILT_IN, built_in_teacher
from dpdmd.models.student_file import exported_student
from dpdmd.report.build import report_from_runs
from dpdmd.store.cache import cache_folder
from dpdmd.store.files import require_writable
from dpdmd.store.names import local_or_hub_id
from dpdmd.vision.features import SCENES
from dpdmd.vision.quality.load import require_known
from dpdmd.vision.weights import find_weights

TEACHER, STUDENT = "teacher", "student"


def audit(
    model: str,
    teacher: str,
    *,
    out: str | Path,
    prompts: list[str] | None = None,
    images_per_prompt: int = 9,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    features: str | Sequence[str] = "auto",
    perceptual: str | None = None,
    quality: Sequence[str] = (),
    batch_size: int = 32,
) -> Path:
    """Generate images with `model` and `teacher`, score both against the teacher, and write a report.

    model: anything that stock diffusers loads (`evaluate.stock`). Runs and exports of dpdmd and the built-in models
        are sampled as by `dpdmd sample`.
    teacher: like `model`, but sampled with its own number of steps and guidance scale.
    out: folder for images, metrics and report.html.
    prompts: default: those of the built-in world, for built-in teachers only.
    num_inference_steps, guidance_scale: of `model`; default: its pipeline's.
    features, perceptual, quality: see `evaluate.run.evaluate_folder`.

    Returns the path of report.html. An audit that was interrupted continues when it is called again.
    Raises ValueError, before images are generated, if prompts or weights are missing or a name is unknown.
    """
    model, teacher = local_or_hub_id(model), local_or_hub_id(teacher)
    require_known(quality)
    for name in [features] if isinstance(features, str) else features:
        if name not in ("auto", SCENES):
            find_weights(name)
    if prompts is None:
        prompts = evaluation_prompts_of(teacher)
    out = Path(out)
    require_writable(out / "report.html", "the report")
    common = {"seeds": list(range(images_per_prompt)), "batch_size": batch_size}
    chosen = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    _draw(teacher, prompts, out / TEACHER / "samples", None, **common)
    _draw(model, prompts, out / STUDENT / "samples", teacher, **common, **chosen)
    for name in (TEACHER, STUDENT):
        evaluate_folder(
            out / name / "samples",
            reference=out / TEACHER / "samples",
            features=features,
            perceptual=perceptual,
            quality=quality,
            out=out / name / "metrics.json",
            cache=cache_folder("images"),
        )
    return report_from_runs([out], out / "report.html", title=f"{model} and its teacher {teacher}")


def _draw(model: str, prompts: list[str], samples: Path, base: str | None, **options) -> None:
    if model in BUILT_IN or find_student(model) is not None or exported_student(model) is not None:
        generate_folder(model, prompts, out=samples, **options)
    else:
        generate_with_stock(model, prompts, out=samples, base=_folder(base), **options)


def _folder(base: str | None) -> str | None:
    """The folder of a built-in teacher, which stock diffusers can load as well; any other base is left unchanged."""
    return str(built_in_teacher(base)) if base in BUILT_IN else base
