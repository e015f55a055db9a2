"""The images of a validation: the same prompts and seeds from the teacher and from the student."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.distributed.processes import on_all_processes
from dpdmd.evaluate.scorers.latents import Latents
from dpdmd.method.denoiser import Condition, Denoiser, Encode
from dpdmd.method.grids import Grid
from dpdmd.method.randomness import draw_noise, generator, image_noise
from dpdmd.method.residual import TAU, denoised
from dpdmd.method.rollout import GuidedTeacher, StudentKind
from dpdmd.models.base import ModelAdapter
from dpdmd.models.sampling import student_samples
from dpdmd.recipe.plan import NUM_PROMPTS
from dpdmd.store.digests import key_of
from dpdmd.store.files import write_text
from dpdmd.store.png import write_png
from dpdmd.store.tensors import read_tensors, write_tensors
from dpdmd.training.validation.picture import picture, picture_path


def default_prompts(prompts: list[str]) -> list[str]:
    """Up to four different prompts spread evenly over the training prompts."""
    unique = list(dict.fromkeys(prompts))
    number = min(NUM_PROMPTS, len(unique))
    return [unique[i * len(unique) // number] for i in range(number)]


@dataclass(frozen=True)
class Images:
    """Images, one per prompt and seed, on the CPU: pixels (P * R, 3, H, W), and the latents that they were drawn as."""

    pixels: Tensor
    latents: Latents


class Validation:
    """Draws the images of teacher and student, and writes `step-000100.png` into `folder`.

    The teacher's images are drawn once and kept there. negatives: the prompts' negative prompts.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        folder: Path,
        *,
        teacher: GuidedTeacher,
        encode: Encode,
        prompts: list[str],
        negatives: list[str],
        num_seeds: int,
        latent_shape: tuple[int, int, int],
        batch_size: int,
        device: torch.device,
    ):
        self.adapter, self.folder, self.teacher, self.batch_size = adapter, folder, teacher, batch_size
        self.device = device
        self.prompts, self.num_seeds = prompts, num_seeds
        self.seeds = [seed for _ in prompts for seed in range(num_seeds)]
        self.latent_shape = latent_shape
        rows = torch.arange(len(prompts)).repeat_interleave(num_seeds)
        self.cond, self.uncond = encode(prompts)[rows], encode(negatives, negative=True)[rows]
        settings = [prompts, num_seeds, list(latent_shape), teacher.grid.times, teacher.guidance.scale, TAU]
        settings += [negatives] if any(negatives) else []
        self.identity = f"teacher-{key_of(json.dumps(settings))[:12]}"
        self._teacher_file = folder / f"{self.identity}.safetensors"

    def teacher_images(self) -> Images:
        """The guided teacher's images, read from the folder if they were drawn with the same settings."""
        kept = _read_images(self._teacher_file)
        self._is_kept = kept is not None
        if all(on_all_processes(lambda: self._is_kept)):
            assert kept is not None  # all includes this process
            return kept
        return self._drawn(lambda rows, cond: self.teacher.rollout(self._noise(rows), cond, self._uncond(rows)))

    def student_images(self, denoise: Denoiser, grid: Grid, kind: StudentKind) -> Images:
        """The student's images of the same prompts and seeds."""
        options = {"grid": grid, "kind": kind, "device": self.device}

        def latents(rows: slice, cond: Condition) -> Tensor:
            return student_samples(denoise, self.adapter.path, self.seeds[rows], self.latent_shape, cond, **options)

        return self._drawn(latents)

    @torch.no_grad()
    def _drawn(self, latents: Callable[[slice, Condition], Tensor]) -> Images:
        """Latents of micro-batches, what the teacher makes of them, and their pixels.

        Raises FloatingPointError unless all are finite.
        The autoencoder is on the device only while it decodes, one image at a time: a large one takes gigabytes.
        """
        samples, seen = [], []
        for start in range(0, len(self.seeds), self.batch_size):
            rows = slice(start, start + self.batch_size)
            cond = self.cond[rows].to(self.device)
            samples.append(latents(rows, cond).float())
            noise = draw_noise([generator(seed, "residual") for seed in self.seeds[rows]], self.latent_shape)
            seen.append(denoised(self.teacher, samples[-1], noise.to(self.device), cond, self._uncond(rows)).cpu())
        self.adapter.vae.to(self.device)
        pixels = [self.adapter.decode(image).float().cpu() for sample in samples for image in sample.split(1)]
        self.adapter.vae.to("cpu")
        images = torch.cat(pixels)
        if not images.isfinite().all():
            whose = "its autoencoder's" if all(sample.isfinite().all() for sample in samples) else "the network's"
            raise FloatingPointError(
                f"{self.adapter.source}: validation images are not finite, since {whose} results are not: its weights "
                "are broken, or overflow"
            )
        return Images(images, Latents(torch.cat(samples).cpu(), torch.cat(seen)))

    def _noise(self, rows: slice) -> Tensor:
        return image_noise(self.seeds[rows], self.latent_shape).to(self.device)

    def _uncond(self, rows: slice) -> Condition:
        return self.uncond[rows].to(self.device)

    def draw(self, step: int, teacher: Images, student: Images) -> Path:
        """Draw the picture of a step (`validation.picture`); keep the teacher's images and the prompts as well.

        Raises OSError when they cannot be written.
        """
        if not self._is_kept:
            latents = teacher.latents
            kept = {"pixels": teacher.pixels, "latents": latents.x0, "denoised": latents.denoised}
            write_tensors(self._teacher_file, kept)
            write_text(self.folder / "prompts.txt", "".join(f"{' '.join(p.split())}\n" for p in self.prompts))
            self._is_kept = True
        path = picture_path(self.folder, step)
        write_png(path, picture(teacher.pixels, student.pixels, self.prompts))
        return path


def _read_images(path: Path) -> Images | None:
    """The stored images; None if the file is missing or broken."""
    try:
        kept = read_tensors(path)
        return Images(kept["pixels"], Latents(kept["latents"], kept["denoised"]))
    except (ValueError, KeyError, OSError):
        return None
