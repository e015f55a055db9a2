"""The report of a student that nobody here trained: any diffusers pipeline, or a LoRA, against its teacher."""

from collections.abc import Sequence
from pathlib import Path

from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.stock import generate_with_stock
from dpdmd.models.load import BUILT_IN, built_in_teacher
from dpdmd.models.student_file import exported_student, find_student
from dpdmd.report.build import report_from_runs
from dpdmd.store.cache import cache_folder
from dpdmd.store.files import require_writable
from dpdmd.vision.features import SCENES
from dpdmd.vision.quality.load import require_known
from dpdmd.vision.weights import find_weights
from dpdmd.world.prompts import evaluation_prompts

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
    """Draw `model` and `teacher` into `out`, score both against the teacher, and write report.html; returns its path.

    model: whatever stock diffusers loads (`evaluate.stock`), called with `num_inference_steps` and `guidance_scale`;
    a run or export of ours and the built-in models are drawn as `dpdmd sample` draws them. teacher: the same, with its
    own steps and guidance. prompts: default those of the built-in world, for its teachers. Others as
    `evaluate_folder` has them. Goes on where it was interrupted.
    Raises ValueError, before anything is drawn, for what is missing or unknown.
    """
    require_known(quality)
    for name in [features] if isinstance(features, str) else features:
        if name not in ("auto", SCENES):
            find_weights(name)
    if prompts is None:
        if teacher not in BUILT_IN:
            raise ValueError(f"give --prompts FILE: there are prompts for the built-in teachers only, got {teacher}")
        prompts = evaluation_prompts()
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
    """A built-in teacher's folder, which stock diffusers can load too."""
    return str(built_in_teacher(base)) if base in BUILT_IN else base
