"""Images of a run's student and of its teacher, for the same prompts and seeds, while it trains or after it stopped.

RUN/evaluation/teacher/         the teacher's images
RUN/evaluation/step-000300/     those of the student after 300 updates
RUN/evaluation/832x1216/        the same of each further size of a run of several
RUN/speed.json                  how long each takes for an image, of the first size
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dpdmd.data.prompts import training_prompts
from dpdmd.evaluate.generate import generate_folder, open_model
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.speed import measure_speed
from dpdmd.models.find import find_student, located
from dpdmd.models.student_file import StudentFile
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.teacher import teacher_adapter, teacher_loras
from dpdmd.recipe.toml import is_run, load_recipe
from dpdmd.store.cache import cache_folder
from dpdmd.training.validation.images import default_prompts

FOLDER = "evaluation"


def draw_student_and_teacher(
    model: str | Path, prompts: list[str] | None = None, *, images_per_prompt: int = 9, batch_size: int = 32
) -> list[tuple[Path, Path]]:
    """Draw the student that `model` names and its teacher at every size of the run, sampled as in training.

    model: a run, RUN@STEP, or a student or checkpoint in a run. prompts: default: those of the run's validation. Images
    that are there already are kept. Returns the folders of the student's and of the teacher's images of each size.
    Raises ValueError for what is no student of a run.
    """
    student = find_student(located(model))
    run = None if student is None else next((path for path in student.absolute().parents if is_run(path)), None)
    if student is None or run is None:
        raise ValueError(f"{model} is no student of a run: draw its images with `dpdmd sample`, then evaluate these")
    recipe = load_recipe(run)
    plan = resolve(recipe, teacher_adapter(recipe.model))
    texts = prompts or plan.validation.prompts or default_prompts(training_prompts(plan.data.prompts, plan.data.column))
    name, seeds, folders = f"step-{StudentFile.read(student).updates:06d}", list(range(images_per_prompt)), []
    of_teacher: dict[str, Any] = {
        "num_inference_steps": plan.teacher.grid.num_steps,
        "guidance_scale": plan.teacher.guidance.scale,
        "negative_prompt": plan.teacher.negative_prompt or None,
        "loras": teacher_loras(recipe.model),
    }
    sizes = [size.image_size or (None, None) for size in plan.sizes]
    options = [{"batch_size": batch_size, "height": height, "width": width} for height, width in sizes]
    for (height, width), at_size in zip(sizes, options, strict=True):
        out = run / FOLDER if not folders else run / FOLDER / f"{height}x{width}"
        generate_folder(str(student), list(texts), out=out / name, seeds=seeds, **at_size)
        generate_folder(plan.teacher.source, list(texts), out=out / "teacher", seeds=seeds, **of_teacher, **at_size)
        folders.append((out / name, out / "teacher"))
    of_student = partial(open_model, str(student), **options[0])
    measure_speed(of_student, partial(open_model, plan.teacher.source, **of_teacher, **options[0]), list(texts), run)
    return folders


def evaluate_run(
    model: str | Path,
    *,
    prompts: list[str] | None = None,
    images_per_prompt: int = 9,
    features: str | Sequence[str] = "auto",
    quality: Sequence[str] = (),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Draw a run's student and its teacher, and score the student's images against the teacher's, at every size.

    model, prompts, images_per_prompt: as for `draw_student_and_teacher`; RUN/evaluation keeps the images. features,
    quality, out and the scores that are returned: as for `dpdmd.evaluate.run.evaluate_folder`.
    """
    (student, teacher), *further = draw_student_and_teacher(model, prompts, images_per_prompt=images_per_prompt)
    options: dict[str, Any] = {"features": features, "quality": quality, "out": out}
    return evaluate_folder(student, reference=teacher, further_sizes=further, **options, cache=cache_folder("images"))
