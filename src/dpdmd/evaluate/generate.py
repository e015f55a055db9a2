"""Sample one of our models into a folder: PNGs, and the manifest that every metric reads."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.distributed.environment import number_from, require_neutral_environment
from dpdmd.distributed.processes import new_accelerator, on_main_process
from dpdmd.evaluate.drawing import DEFAULTS, Draw, draw_folder
from dpdmd.evaluate.manifest import MANIFEST_NAME, Manifest
from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.randomness import image_noise
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import decoder, encoded, network_denoiser
from dpdmd.models.identity import model_identity
from dpdmd.models.load import Sampler, load_adapter, load_sampler, sampling_dtype
from dpdmd.models.sampling import hybrid_samples, student_samples
from dpdmd.models.student_file import BaseLora
from dpdmd.store.cache import batches
from dpdmd.store.digests import key_of
from dpdmd.store.errors import require_text
from dpdmd.store.files import require_place, require_writable

logger = logging.getLogger(__name__)

LAST_SEED, MOST_IMAGES = 2**64 - 1, 10**7
CHUNK = 64  # prompts encoded at a time


@dataclass(frozen=True)
class Teacher:
    """The teacher that replaces the first step of a student (a hybrid)."""

    network: nn.Module
    grid: Grid
    guidance_scale: float


def load_teacher(sampler: Sampler, num_inference_steps: int | None, guidance_scale: float | None) -> Teacher:
    """The teacher of a student, by default with its own steps and guidance.

    Raises ValueError for a student that cannot become a hybrid: a teacher, or one that adds noise in its first step.
    """
    if sampler.grid is None or sampler.kind == "renoise":
        raise ValueError("--teacher-first needs a student whose first step is deterministic: the teacher replaces it")
    assert sampler.base is not None, "a student has a base"
    adapter = load_adapter(sampler.base, sampler.base_loras)
    scale = adapter.guidance_scale if guidance_scale is None else guidance_scale
    Guidance(scale)  # raises for a bad scale
    grid = adapter.stock_grid(num_inference_steps or adapter.num_inference_steps, sampler.latent_shape())
    return Teacher(adapter.load_network(sampling_dtype(adapter.stored_dtype)).eval().requires_grad_(False), grid, scale)


def sample_latents(
    sampler: Sampler,
    cond: Condition,
    uncond: Condition,
    seeds: list[int],
    shape: tuple[int, int, int],
    *,
    grid: Grid,
    guidance_scale: float,
    first: Teacher | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Final latents (B, C, H, W) along `grid`, one for each seed: with guidance for a teacher, without for a student.

    first: a teacher that replaces the student's first step.
    """
    adapter = sampler.adapter
    denoise = network_denoiser(adapter, sampler.network, sampler.embedded_guidance)
    if first is not None:
        guidance = Guidance(first.guidance_scale, adapter.guidance_rule)
        teacher_denoise = network_denoiser(adapter, first.network, adapter.embedded_guidance)
        teacher = GuidedTeacher(teacher_denoise, adapter.path, first.grid, guidance)
        return hybrid_samples(
            teacher, denoise, seeds, shape, cond, uncond, student_grid=grid, kind=sampler.kind, device=device
        )
    if sampler.grid is not None and guidance_scale == 1:
        return student_samples(denoise, adapter.path, seeds, shape, cond, grid=grid, kind=sampler.kind, device=device)
    teacher = GuidedTeacher(denoise, adapter.path, grid, Guidance(guidance_scale, adapter.guidance_rule))
    return teacher.rollout(image_noise(seeds, shape).to(device), cond, uncond)


def sampling_grid(
    sampler: Sampler, num_inference_steps: int | None, latent_shape: tuple[int, int, int] | None = None
) -> Grid:
    """The grid of a student, or the stock grid of a teacher.

    Raises ValueError for a student with another number of steps than its own.
    """
    if sampler.grid is None:
        return sampler.adapter.stock_grid(num_inference_steps or sampler.adapter.num_inference_steps, latent_shape)
    grid = sampler.student_grid
    assert grid is not None, "a student has one at every size"
    if num_inference_steps not in (None, grid.num_steps):
        raise ValueError(
            f"this student was trained for {grid.num_steps} steps, got num_inference_steps "
            f"{num_inference_steps}; leave it out"
        )
    return grid


@dataclass(frozen=True)
class Sampling:
    """A model, and how it is sampled: along `grid`, guided by `guidance_scale` away from `negative_prompt`.

    first: a teacher that replaces the student's first step (a hybrid).
    """

    sampler: Sampler
    grid: Grid
    guidance_scale: float
    negative_prompt: str
    first: Teacher | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt may count."""
        return self.first is not None or self.guidance_scale > 1


def choose_sampling(
    sampler: Sampler,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    *,
    teacher_first: bool = False,
) -> Sampling:
    """How to sample a model: as it says itself where a setting is None.

    teacher_first: the student's teacher replaces its first step and takes the three settings.
    Raises ValueError for a number of steps, a guidance scale or a negative prompt that the model cannot have.
    """
    first = load_teacher(sampler, num_inference_steps, guidance_scale) if teacher_first else None
    grid = sampling_grid(sampler, None if first else num_inference_steps, sampler.latent_shape())
    scale = sampler.guidance_scale if guidance_scale is None or first else guidance_scale
    Guidance(scale)  # raises for a bad scale before anything is written
    if negative_prompt:
        _require_negative_prompt(sampler, scale if first is None else first.guidance_scale)
    return Sampling(
        sampler, grid, scale, sampler.negative_prompt if negative_prompt is None else negative_prompt, first
    )


def new_draw(sampling: Sampling, device: torch.device, batch_size: int) -> Draw:
    """What draws (prompt, seed) pairs on a device, to which the networks are moved."""
    sampler, first, shape = sampling.sampler, sampling.first, sampling.sampler.latent_shape()
    sampler.network.to(device)
    if first is not None:
        first.network.to(device)
    decode = decoder(sampler.adapter)

    def draw(jobs: list[tuple[str, int]]) -> Iterator[Tensor]:
        uncond = encoded(sampler.adapter, [sampling.negative_prompt], negative=True).to(device)
        for cond, seeds in _encoded_batches(sampler, jobs, batch_size):
            latents = sample_latents(
                sampler,
                cond.to(device),
                uncond.expand(len(seeds)),
                seeds,
                shape,
                grid=sampling.grid,
                guidance_scale=sampling.guidance_scale,
                first=first,
                device=device,
            )
            with torch.no_grad():
                yield from decode(latents).cpu()

    return draw


@dataclass(frozen=True)
class Drawing:
    """A model that is ready to draw.

    draw: from (prompt, seed) pairs to their images (3, H, W) in [-1, 1]. settings: all that the images depend on.
    """

    draw: Draw
    settings: dict[str, Any]


def generate_folder(
    model: str,
    prompts: list[str],
    *,
    out: str | Path,
    seeds: list[int],
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    teacher_first: bool = False,
    height: int | None = None,
    width: int | None = None,
    base: str | None = None,
    loras: Sequence[BaseLora] = (),
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """Sample every prompt with every seed into `out`: PNGs and manifest.json. Continues an unfinished folder.

    The model and how it is sampled are as in `open_model`. It runs on a GPU where there is one. Under torchrun each
    process draws a share of the images.
    Raises ValueError for empty or repeated prompts or seeds, what `open_model` refuses, and a folder with images that
    were made with other settings.
    """
    require_different(prompts, seeds, batch_size)
    require_place(out, "--out")
    require_writable(Path(out) / MANIFEST_NAME)
    drawing = open_model(
        model,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        teacher_first=teacher_first,
        height=height,
        width=width,
        base=base,
        loras=loras,
        batch_size=batch_size,
    )
    what = f"sampling {model}"
    return draw_folder(out, prompts, seeds, drawing.draw, settings=drawing.settings, what=what, progress=progress)


def open_model(
    model: str,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    teacher_first: bool = False,
    height: int | None = None,
    width: int | None = None,
    base: str | None = None,
    loras: Sequence[BaseLora] = (),
    batch_size: int = 32,
) -> Drawing:
    """Load a model for drawing, onto a GPU where there is one.

    model: as `models.load.load_sampler` takes it. num_inference_steps, guidance_scale: by default the model's own; a
    student has its own grid and no guidance. negative_prompt: what guidance leads away from; default: nothing.
    teacher_first: the student's teacher replaces its first step (a hybrid, without training) and takes these three, the
    negative prompt by default from the student's training. height, width: of the images in pixels; default: those that
    a student was trained at, a teacher's own. A student of one size keeps its grid at every size. base: for a LoRA
    student, the model into which it is merged instead of its own base. loras: to merge into a teacher, or into this
    base. batch_size: changes speed and memory only.
    Raises ValueError for an unknown model, and for a size or number of steps that it cannot draw.
    """
    device = start_processes()
    sampler = load_sampler(model, base=base, loras=loras)
    if height is not None or width is not None:
        sampler = replace(sampler, image_size=(height, width))
    sampling = choose_sampling(
        sampler, num_inference_steps, guidance_scale, negative_prompt, teacher_first=teacher_first
    )
    student = sampler if teacher_first else None
    settings: dict[str, Any] = {
        "model": model,
        "identity": on_main_process(lambda: _identity(model, loras, student, base)),
        "base": base,
        "num_inference_steps": sampling.grid.num_steps,
        "guidance_scale": sampling.guidance_scale,
        "grid": list(sampling.grid.times),
        "image_size": None if height is None and width is None else [height, width],
        DEFAULTS: [
            name
            for name, value in (("num_inference_steps", num_inference_steps), ("guidance_scale", guidance_scale))
            if value is None
        ],
    }
    if loras:
        settings["loras"] = [lora.model_dump() for lora in loras]
    if sampling.negative_prompt and sampling.is_guided:
        settings["negative_prompt"] = sampling.negative_prompt
    if (first := sampling.first) is not None:
        settings["teacher_first"] = {
            "num_inference_steps": first.grid.num_steps, "guidance_scale": first.guidance_scale
        }  # fmt: skip
    for note in sampler.adapter.notes if sampler.grid is None else []:
        logger.info("%s: %s", model, note)
    return Drawing(new_draw(sampling, device, batch_size), settings)


@torch.no_grad()
def sample(model: str | Path, prompts: list[str], *, seeds: Sequence[int] = (0,), batch_size: int = 32) -> Tensor:
    """Images (len(prompts) * len(seeds), 3, H, W) in [-1, 1] on the CPU, prompt by prompt, every seed of each.

    model: a run folder, an export, a built-in name, a pipeline folder or a hub id, sampled as `dpdmd sample` does by
    default. The image of a prompt and seed does not depend on the others. For many images use `generate_folder`, which
    writes them to disk and can be interrupted. Raises ValueError like `generate_folder`, and
    FloatingPointError for images that are not finite.
    """
    require_different(prompts, list(seeds), batch_size)
    require_neutral_environment()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = new_draw(choose_sampling(load_sampler(str(model))), device, batch_size)
    images = []
    for image in draw([(prompt, seed) for prompt in prompts for seed in seeds]):
        if not image.isfinite().all():
            raise FloatingPointError(f"{model} draws images that are not finite")
        images.append(image.clamp(-1, 1))
    return torch.stack(images)


def _require_negative_prompt(sampler: Sampler, guidance_scale: float) -> None:
    """Raises ValueError where a negative prompt would change nothing."""
    if not sampler.adapter.takes_negative_prompt:
        raise ValueError(f"--negative-prompt: {sampler.adapter.pipeline_class.__name__} takes none; leave it out")
    if guidance_scale == 1:
        raise ValueError(
            "--negative-prompt has no effect without guidance (guidance_scale 1, as a student has it): leave it out; a "
            "student is trained with model.negative_prompt"
        )


def _identity(model: str, loras: Sequence[BaseLora], student: Sampler | None, base: str | None) -> str:
    """Of all that draws: the model, and where there are any the teacher of its first step and the base of its LoRA."""
    identities = [model_identity(model, loras=() if base else loras)]
    if student is not None and student.base is not None:
        identities.append(model_identity(student.base, loras=student.base_loras))
    if base is not None:
        identities.append(model_identity(base, loras=loras))
    return identities[0] if len(identities) == 1 else key_of(*identities)


def require_different(prompts: list[str], seeds: list[int], batch_size: int) -> None:
    """Raises ValueError for empty or repeated prompts or seeds, and for a batch size below 1."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got one text: {prompts!r}")
    for prompt in prompts:
        require_text(prompt, "the prompt")
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must not be negative, got {min(seeds)}")
    if any(seed > LAST_SEED for seed in seeds):
        raise ValueError(
            f"seeds must be at most {LAST_SEED}, the last one of torch, and the images go up to {max(seeds)}: lower "
            "--seed or --images-per-prompt"
        )
    if len(prompts) * len(seeds) > MOST_IMAGES:
        raise ValueError(
            f"{len(prompts)} prompts with {len(seeds)} images each are more than {MOST_IMAGES:,} files, too many for "
            "one folder: take fewer of either"
        )
    for name, values in (("prompts", prompts), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(
                f"{name} must be a list of at least one value and no value twice, got {len(values)} of them"
            )
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")


def start_processes() -> torch.device:
    """The device of this process; joins the other processes of torchrun, if there are any."""
    require_neutral_environment()
    if number_from("WORLD_SIZE") > 1:
        return new_accelerator().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _encoded_batches(
    sampler: Sampler, jobs: list[tuple[str, int]], batch_size: int
) -> Iterator[tuple[Condition, list[int]]]:
    """Conditions and seeds, one batch at a time; only CHUNK prompts are encoded at once, since embeddings are large."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in jobs))
    for start in range(0, len(prompts), CHUNK):
        rows = {prompt: row for row, prompt in enumerate(prompts[start : start + CHUNK])}
        conds = encoded(sampler.adapter, list(rows))
        own = [(rows[prompt], seed) for prompt, seed in jobs if prompt in rows]
        for batch in batches(own, batch_size):
            yield conds[torch.tensor([row for row, _ in batch])], [seed for _, seed in batch]
