"""Audit a few-step model that was trained elsewhere: compare a diffusers pipeline or a LoRA with its teacher."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dpdmd.data.prompts import evaluation_prompts_of
from dpdmd.evaluate.generate import Drawing, generate_folder, open_model
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.speed import SPEED_FILE, measure_speed
from dpdmd.evaluate.stock import Call, generate_with_stock, is_pipeline, open_pipeline
from dpdmd.models.find import find_student
from dpdmd.models.load import BUILT_IN, built_in_teacher
from dpdmd.models.student_file import LORA_FILE, BaseLora, StudentFile, exported_student
from dpdmd.report.build import report_from_runs
from dpdmd.store.cache import cache_folder
from dpdmd.store.files import make_folder, require_writable
from dpdmd.store.names import local_or_hub_id
from dpdmd.vision.features import OF_WORLDS
from dpdmd.vision.quality.load import require_known
from dpdmd.vision.weights import find_weights

TEACHER, STUDENT = "teacher", "student"
Loras = tuple[BaseLora, ...]


def audit(
    model: str,
    teacher: str,
    *,
    out: str | Path,
    prompts: list[str] | None = None,
    images_per_prompt: int = 9,
    call: Call = Call(),  # noqa: B008  # frozen
    teacher_call: Call = Call(),  # noqa: B008
    teacher_loras: Sequence[BaseLora] | None = None,
    features: str | Sequence[str] = "auto",
    perceptual: str | None = None,
    quality: Sequence[str] = (),
    batch_size: int = 32,
) -> Path:
    """Generate images with `model` and `teacher`, score both against the teacher, and write a report.

    model: anything that stock diffusers loads (`evaluate.stock`). Runs and exports of dpdmd and the built-in models
        are sampled as by `dpdmd sample`.
    teacher: like `model`. For a LoRA it may be another model than the one that the LoRA was trained for.
    out: folder for images, metrics and report.html.
    prompts: default: those of the built-in world, for built-in teachers only.
    call, teacher_call: how `model` and `teacher` are called; what is left out is the pipeline's default, or for our
        own models as `dpdmd sample` has it, and the manifest and the page say so.
    teacher_loras: LoRAs that are merged into the teacher, and into it as well where MODEL is a LoRA for it; default:
        those that one of our students was trained with, if the teacher is its base.
    features, perceptual, quality: see `evaluate.run.evaluate_folder`.

    Returns the path of report.html. An audit that was interrupted continues when it is called again.
    Raises ValueError, before images are generated, if prompts or weights are missing or a name is unknown.
    """
    model, teacher = (_with_its_export(local_or_hub_id(name)) for name in (model, teacher))
    for name, its_call in ((model, call), (teacher, teacher_call)):
        _require_call(name, its_call)
    teacher_call = _as_trained(model, teacher_call)
    loras = _loras_as_trained(model, teacher) if teacher_loras is None else tuple(teacher_loras)
    require_known(quality)
    for name in [features] if isinstance(features, str) else features:
        if name not in ("auto", *OF_WORLDS):
            find_weights(name)
    if prompts is None:
        prompts = evaluation_prompts_of(teacher)
    out = Path(out)
    make_folder(out, "--out")
    require_writable(out / "report.html", "the report")
    common = {"seeds": list(range(images_per_prompt)), "batch_size": batch_size}
    # The student first: it takes few steps, and a LoRA that does not fit is found before the teacher's many.
    _draw(model, prompts, out / STUDENT / "samples", teacher, call, loras, **common)
    _draw(teacher, prompts, out / TEACHER / "samples", None, teacher_call, loras, **common)
    if not (out / STUDENT / SPEED_FILE).exists():
        openers = partial(_open, model, teacher, call, loras), partial(_open, teacher, None, teacher_call, loras)
        measure_speed(*openers, prompts, out / STUDENT)
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


def _draw(model: str, prompts: list[str], samples: Path, base: str | None, call: Call, loras: Loras, **options) -> None:
    if _is_ours(model, call):
        generate_folder(model, prompts, out=samples, **_settings(model, base, call, loras), **options)
    else:
        places = _places(model, base, loras)
        generate_with_stock(prompts=prompts, out=samples, call=call, **places, **options)


def _open(model: str, base: str | None, call: Call, loras: Loras) -> Drawing:
    """The model ready to draw as `_draw` does."""
    if _is_ours(model, call):
        return open_model(model, **_settings(model, base, call, loras))
    return open_pipeline(call=call, **_places(model, base, loras))


def _places(model: str, base: str | None, loras: Loras) -> dict[str, Any]:
    """What a stock pipeline is loaded from: the teacher, or a LoRA for it, has its LoRAs; another pipeline none."""
    has_loras = base is None or not is_pipeline(_folder(model))
    return {"model": _folder(model), "base": base and _folder(base), "loras": loras if has_loras else ()}


def _is_ours(model: str, call: Call) -> bool:
    """Whether it is drawn as by `dpdmd sample`."""
    return _is_student(model) or (model in BUILT_IN and not call.needs_stock)


def _settings(model: str, base: str | None, call: Call, loras: Loras) -> dict[str, Any]:
    """How one of ours is drawn."""
    base_of_lora = _base_of_lora(model, base)
    steps = {"num_inference_steps": call.num_inference_steps, "guidance_scale": call.guidance_scale}
    return {"base": base_of_lora, "loras": loras if base_of_lora or base is None else (), **steps}


def _base_of_lora(model: str, base: str | None) -> str | None:
    """`base` for a student that is a LoRA, which may be judged on another base than its own."""
    student = find_student(model)
    return base if student is not None and (student / LORA_FILE).is_file() else None


def _with_its_export(model: str) -> str:
    """The folder of an exported LoRA for the file in it: its grid and guidance are in the folder."""
    place = Path(model)
    return str(place.parent) if place.name == LORA_FILE and exported_student(place.parent) else model


def _as_trained(model: str, teacher_call: Call) -> Call:
    """The teacher's call; with the negative prompt that one of our students was trained with, unless one is given."""
    folder = find_student(model)
    info = exported_student(model) if folder is None else StudentFile.read(folder)
    if teacher_call.negative_prompt is not None or info is None or not info.negative_prompt:
        return teacher_call
    return replace(teacher_call, negative_prompt=info.negative_prompt)


def _loras_as_trained(model: str, teacher: str) -> Loras:
    """The LoRAs that one of our students was trained with, if the teacher is its base."""
    folder = find_student(model)
    info = exported_student(model) if folder is None else StudentFile.read(folder)
    if info is None:
        return ()
    is_its_base = info.base == teacher or (Path(teacher).exists() and Path(info.base) == Path(teacher).resolve())
    return info.base_loras if is_its_base else ()


def _is_student(model: str) -> bool:
    """Whether it is one of ours: a run, a student of it, or an export."""
    return find_student(model) is not None or exported_student(model) is not None


def _require_call(model: str, call: Call) -> None:
    if _is_student(model) and call.needs_stock:
        raise ValueError(
            f"{model} is a student of dpdmd, which has its grid and its scheduler with it: leave out scheduler, "
            "timesteps, sigmas and negative prompt"
        )


def _folder(model: str) -> str:
    """The folder of a built-in teacher, which stock diffusers can load as well; any other model is left unchanged."""
    return str(built_in_teacher(model)) if model in BUILT_IN else model
