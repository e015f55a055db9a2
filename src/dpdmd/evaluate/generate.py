"""Generate once to a folder: PNGs and a manifest that every metric reads."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.denoiser import Condition
from dpdmd.evaluate.manifest import ImageEntry, Manifest, write_manifest
from dpdmd.files import write_png
from dpdmd.grids import Grid
from dpdmd.guidance import Guidance
from dpdmd.hybrid import hybrid_samples
from dpdmd.models.base import network_denoiser
from dpdmd.models.load import Sampler, load_adapter, load_sampler
from dpdmd.randomness import image_noise
from dpdmd.rollout import student_samples, teacher_rollout


@dataclass(frozen=True)
class Teacher:
    """What draws the first part of a hybrid."""

    network: nn.Module
    grid: Grid
    guidance_scale: float


def load_teacher(sampler: Sampler, num_inference_steps: int | None, guidance_scale: float | None) -> Teacher:
    """The teacher of a student, by default as its family samples it. Raises ValueError where a hybrid cannot be."""
    if sampler.grid is None or sampler.kind != "ode":
        raise ValueError(
            "--teacher-first is for a deterministic student: the teacher takes the place of its first step"
        )
    adapter = load_adapter(sampler.base)
    scale = adapter.guidance_scale if guidance_scale is None else guidance_scale
    Guidance(scale)  # refuses a bad scale
    grid = adapter.stock_grid(num_inference_steps or adapter.num_inference_steps, sampler.latent_shape())
    return Teacher(adapter.load_network().eval().requires_grad_(False), grid, scale)


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
) -> Tensor:
    """Final latents (B, C, H, W) along `grid`, one per seed: a teacher's guided, a student's unguided.

    first: a teacher that takes the place of the student's first step.
    """
    adapter = sampler.adapter
    denoise = network_denoiser(adapter, sampler.network, sampler.embedded_guidance)
    if first is not None:
        return hybrid_samples(
            network_denoiser(adapter, first.network, adapter.embedded_guidance),
            denoise,
            adapter.path,
            image_noise(seeds, shape),
            cond,
            uncond,
            teacher_grid=first.grid,
            guidance=Guidance(first.guidance_scale, rule=adapter.guidance_rule),
            student_grid=grid,
        )
    if sampler.grid is not None and guidance_scale == 1:
        return student_samples(denoise, adapter.path, seeds, shape, cond, grid=grid, kind=sampler.kind)
    guidance = Guidance(guidance_scale, rule=adapter.guidance_rule)
    noise = image_noise(seeds, shape)
    return teacher_rollout(denoise, adapter.path, noise, cond, uncond, grid=grid, guidance=guidance)


def sampling_grid(
    sampler: Sampler, num_inference_steps: int | None, latent_shape: tuple[int, int, int] | None = None
) -> Grid:
    """A student's own grid, a teacher's stock grid. Raises ValueError for a student asked for other steps."""
    if sampler.grid is None:
        return sampler.adapter.stock_grid(num_inference_steps or sampler.adapter.num_inference_steps, latent_shape)
    if num_inference_steps not in (None, sampler.grid.num_steps):
        raise ValueError(
            f"this student was trained for {sampler.grid.num_steps} steps, got num_inference_steps "
            f"{num_inference_steps}; leave it out"
        )
    return sampler.grid


def generate_folder(
    model: str,
    prompts: list[str],
    *,
    out: str | Path,
    seeds: list[int],
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    teacher_first: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """Sample every prompt with every seed into `out`: PNGs and manifest.json.

    model: a name `models.load.load_sampler` takes. Defaults: a student's own grid without guidance; a teacher's own
    number of steps and guidance scale. teacher_first: the student's teacher takes the place of its first step (a
    hybrid, no training), with `num_inference_steps` and `guidance_scale` of its own. Raises ValueError for empty or
    repeated prompts or seeds, or an unknown model.
    """
    for name, values in (("prompts", prompts), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be a list of different values, at least one, got {len(values)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    sampler = load_sampler(model)
    shape = sampler.latent_shape()
    first = load_teacher(sampler, num_inference_steps, guidance_scale) if teacher_first else None
    grid = sampling_grid(sampler, None if first else num_inference_steps, shape)
    scale = sampler.guidance_scale if guidance_scale is None or first else guidance_scale
    Guidance(scale)  # refuses a bad scale before anything is written
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    conds, uncond = sampler.adapter.encode(prompts), sampler.adapter.encode([""])
    jobs = [(i, seed) for i in range(len(prompts)) for seed in seeds]
    entries, seconds = [], 0.0
    with tqdm(total=len(jobs), desc=f"sampling {model}", unit="image", disable=not progress) as bar:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            started = time.perf_counter()
            cond = conds[torch.tensor([i for i, _ in batch])]
            latents = sample_latents(
                sampler,
                cond,
                uncond.expand(len(batch)),
                [seed for _, seed in batch],
                shape,
                grid=grid,
                guidance_scale=scale,
                first=first,
            )
            images = sampler.adapter.decode(latents)
            seconds += time.perf_counter() - started
            for (i, seed), image in zip(batch, images, strict=True):
                file = f"{i:04d}-{seed:06d}.png"
                write_png(out / file, image)
                entries.append(ImageEntry(prompts[i], seed, file))
            bar.update(len(batch))
    info = {
        "model": model,
        "num_inference_steps": grid.num_steps,
        "guidance_scale": scale,
        "grid": list(grid.times),
        "seconds": seconds,
    }
    if first is not None:
        info["teacher_first"] = {"num_inference_steps": first.grid.num_steps, "guidance_scale": first.guidance_scale}
    return write_manifest(out, entries, info)
