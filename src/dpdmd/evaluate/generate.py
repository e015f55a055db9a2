"""Generate once to a folder: PNGs and a manifest that every metric reads."""

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dpdmd.denoiser import Condition
from dpdmd.evaluate.manifest import ImageEntry, Manifest, write_manifest
from dpdmd.files import write_png
from dpdmd.grids import Grid
from dpdmd.guidance import Guidance
from dpdmd.models.base import network_denoiser
from dpdmd.models.load import Sampler, load_sampler
from dpdmd.randomness import image_noise
from dpdmd.rollout import student_samples, teacher_rollout


def sample_latents(
    sampler: Sampler,
    cond: Condition,
    uncond: Condition,
    seeds: list[int],
    shape: tuple[int, int, int],
    *,
    grid: Grid,
    guidance_scale: float,
) -> Tensor:
    """Final latents (B, C, H, W) along `grid`, one per seed: a teacher's guided, a student's unguided."""
    adapter = sampler.adapter
    denoise = network_denoiser(adapter, sampler.network, sampler.embedded_guidance)
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
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """Sample every prompt with every seed into `out`: PNGs and manifest.json.

    model: a name `models.load.load_sampler` takes. Defaults: a student's own grid without guidance; a teacher's own
    number of steps and guidance scale. Raises ValueError for empty or repeated prompts or seeds, or an unknown model.
    """
    for name, values in (("prompts", prompts), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be a list of different values, at least one, got {len(values)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    sampler = load_sampler(model)
    shape = sampler.latent_shape()
    grid = sampling_grid(sampler, num_inference_steps, shape)
    scale = sampler.guidance_scale if guidance_scale is None else guidance_scale
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
    return write_manifest(out, entries, info)
