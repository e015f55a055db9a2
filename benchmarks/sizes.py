"""Does a student trained at three sizes draw each as well as one trained at it alone?

    python -m benchmarks.sizes --seeds 0 1 2          about an hour for each seed on one quiet core

Scenes at 32 x 32, 24 x 40 and 40 x 24 pixels (height x width), by the built-in flow trained further for them
(`tools.pretrain.sizes`, which this runs first). The student of three sizes has three times the updates of the others,
so that each size has as many in both. All are judged at every size by the oracle through a window and by the latents
alone (`evaluate.scorers.latents`), against the teacher of the same prompts and seeds; the teacher at other seeds and
rendered scenes say what can be reached.

An interrupted command can be run again: finished runs are not repeated. Writes benchmarks/results/sizes.json, from
which benchmarks.sizes_page makes the table of the documentation.
"""

import argparse
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import dpdmd
from dpdmd.evaluate.scorers.latents import latent_scores
from dpdmd.method.randomness import generator
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import encoded, network_denoiser
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.training.validation.images import Images, Validation
from dpdmd.world.captions import caption
from dpdmd.world.metrics import named_accuracy
from dpdmd.world.oracle import VALID_DISTORTION, VALID_RESIDUAL, Reading, read_scenes
from dpdmd.world.prompts import evaluation_prompts
from dpdmd.world.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, palette, render, sample_scenes
from tools.pretrain.sizes import NUM_SCENES, NUM_STEPS, SIZES, render_window, train_at_sizes

RECIPE, NUM_UPDATES, IMAGES_PER_PROMPT = "scenes_dp_dmd", 300, 16
RESULTS = Path("benchmarks", "results", "sizes.json")
TOGETHER, ALONE = "student of three sizes", "student of this size"
FILLS = 3  # how often what a window hides is filled by what was read


def name_of(size: tuple[int, int]) -> str:
    """HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"


def read_window(images: Tensor) -> Reading:
    """`oracle.read_scenes` of scenes through a window (B, 3, H, W): the fit and its error count visible pixels alone.

    What the window hides of the usual 32 x 32 pixels is filled by the reading, and read again. Validity has the
    oracle's thresholds for the residual and the distortion over the visible pixels.
    """
    height, width = images.shape[2:]
    rows, columns = (IMAGE_SIZE - height) // 2, (IMAGE_SIZE - width) // 2
    edges = (columns, columns, rows, rows)  # negative ones crop
    visible = F.pad(torch.ones(1, 1, height, width), edges)
    filled = F.pad(F.pad(images, [max(edge, 0) for edge in edges], "replicate"), [min(edge, 0) for edge in edges])
    reading = read_scenes(filled)
    for _ in range(FILLS):
        filled = torch.where(visible > 0, filled, render(reading.scenes))
        reading = read_scenes(filled)
    error = (filled - render(reading.scenes)) * visible
    share = visible.mean()
    residual = (error.square().mean((1, 2, 3)) / share).sqrt()
    contrast = palette(COLOURS)[reading.scenes.discrete["colour"]]
    contrast = (contrast - palette(BACKGROUNDS)[reading.scenes.discrete["background"]]).square().mean(1).sqrt()
    structure = (F.avg_pool2d(error, 3, 1, 1, count_include_pad=False).square().mean((1, 2, 3)) / share).sqrt()
    distortion = structure / contrast
    valid = (residual <= VALID_RESIDUAL) & (distortion <= VALID_DISTORTION)
    return Reading(reading.scenes, residual, distortion, valid)


def scene_scores(prompts: list[str], images: Tensor) -> dict[str, float]:
    """Share of clean scenes, and of the factors named in the prompts that the images show."""
    reading = read_window(images)
    right = named_accuracy(prompts, reading)["all"]
    assert right is not None, "every prompt names a factor"
    return {"clean": reading.valid.float().mean().item(), "named_right": right}


def rendered_scores(size: tuple[int, int], number: int = 384) -> dict[str, float]:
    """`scene_scores` of rendered scenes, whose captions name shape and colour."""
    scenes = sample_scenes(number, generator(0, "sizes_rendered"))
    colours, shapes = (scenes.discrete[factor].tolist() for factor in ("colour", "shape"))
    prompts = [
        caption({"colour": list(COLOURS)[colour], "shape": SHAPES[shape]})
        for colour, shape in zip(colours, shapes, strict=True)
    ]
    return scene_scores(prompts, render_window(scenes, *size))


def train(teacher: Path, out: Path, sizes: tuple[tuple[int, int], ...], seed: int, num_updates: int) -> Path:
    """The run of a student at these sizes, each with `num_updates` updates on average."""
    name = "all" if len(sizes) > 1 else "+".join(map(name_of, sizes))
    folder = out / f"seed-{seed}" / name
    overrides = [
        f"model.teacher={teacher.absolute()}",
        f"model.sizes={[list(size) for size in sizes]}",
        f"train.num_updates={len(sizes) * num_updates}",
        f"train.seed={seed}",
        "validation.every=0",
        f"output.folder={folder}",
    ]
    return dpdmd.train(RECIPE, overrides=overrides, resume=True, progress=False).folder


def judged(run: Path, size: tuple[int, int], images_per_prompt: int, out: Path) -> dict[str, dict[str, float]]:
    """{"student", "teacher", "other seeds"}: scores of a run's student and of its teacher at a size."""
    recipe = load_recipe(run)
    adapter = load_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    at = next(plan.at(i) for i, own in enumerate(plan.sizes) if own.image_size == size)
    prompts = evaluation_prompts()
    sampler = load_sampler(str(run / "student"))
    student = network_denoiser(adapter, sampler.network)
    validation, teacher = _drawn_by_teacher(recipe.model.teacher, name_of(size), images_per_prompt, out, at)
    drawn = {
        "student": validation.student_images(student, at.student.grid, at.student.kind),
        "teacher": teacher,
        "other seeds": _of_other_seeds(validation),
    }
    asked = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    return {
        name: scene_scores(asked, images.pixels)
        | {key: e.value for key, e in latent_scores(len(prompts), images.latents, teacher.latents).estimates.items()}
        for name, images in drawn.items()
    }


KEPT: dict[str, tuple[Validation, Images]] = {}  # what the teacher draws at a size is the same for all students


def _drawn_by_teacher(source: str, name: str, images_per_prompt: int, out: Path, at: Plan) -> tuple[Validation, Images]:
    if name not in KEPT:
        adapter = load_adapter(source)
        network = adapter.load_network().eval().requires_grad_(False)
        prompts = evaluation_prompts()
        validation = Validation(
            adapter,
            out / "teacher_images" / name,
            teacher=GuidedTeacher(network_denoiser(adapter, network), at.path, at.teacher.grid, at.teacher.guidance),
            encode=partial(encoded, adapter),
            prompts=prompts,
            negatives=[""] * len(prompts),
            num_seeds=images_per_prompt,
            latent_shape=at.latent_shape,
            batch_size=64,
            device=torch.device("cpu"),
        )
        KEPT[name] = validation, validation.teacher_images()
    return KEPT[name]


@cache
def _of_other_seeds(validation: Validation) -> Images:
    before = validation.seeds
    validation.seeds = [seed + 10_000 for seed in before]
    try:
        return validation.teacher_images()
    finally:
        validation.seeds = before


def measure(
    out: Path,
    seeds: list[int],
    *,
    num_updates: int,
    images_per_prompt: int,
    num_steps: int = NUM_STEPS,
    num_scenes: int = NUM_SCENES,
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """{size: {row: scores}}, of students for each seed. num_steps, num_scenes: of the teacher."""
    teacher = train_at_sizes(out / "teacher", num_steps=num_steps, num_scenes=num_scenes)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {name_of(size): {} for size in SIZES}
    for seed in seeds:
        together = train(teacher, out, SIZES, seed, num_updates)
        for size in SIZES:
            alone = train(teacher, out, (size,), seed, num_updates)
            of_size = rows[name_of(size)]
            for row, run in ((TOGETHER, together), (ALONE, alone)):
                found = judged(run, size, images_per_prompt, out)
                of_size.setdefault(row, []).append(found["student"])
                of_size["teacher"], of_size["teacher, other seeds"] = [found["teacher"]], [found["other seeds"]]
    for size in SIZES:
        rows[name_of(size)]["rendered scenes"] = [rendered_scores(size)]
    return rows


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "sizes"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=NUM_UPDATES, help="of each size")
    parser.add_argument("--images-per-prompt", type=int, default=IMAGES_PER_PROMPT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {"num_updates": arguments.updates, "images_per_prompt": arguments.images_per_prompt}
    rows = measure(arguments.out, arguments.seeds, **options)
    settings = {"recipe": RECIPE, "seeds": arguments.seeds, **options}
    command = f"python -m benchmarks.sizes --seeds {' '.join(map(str, arguments.seeds))}"
    write_json(arguments.results, {"rows": rows, "settings": settings, "provenance": surroundings(command)})
    print(f"written to {arguments.results}")


if __name__ == "__main__":
    main()
