"""Validation pictures: the same prompts and seeds from the teacher (upper row) and from the student (lower row)."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.distributed.processes import on_all_processes
from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.grids import Grid
from dpdmd.method.randomness import image_noise
from dpdmd.method.rollout import GuidedTeacher, StudentKind
from dpdmd.models.base import ModelAdapter
from dpdmd.models.sampling import student_samples
from dpdmd.store.digests import key_of
from dpdmd.store.files import write_text
from dpdmd.store.png import write_png
from dpdmd.store.tensors import read_tensors, write_tensors
from dpdmd.training.validation.picture import picture, picture_path

NUM_DEFAULT_PROMPTS = 4


def default_prompts(prompts: list[str]) -> list[str]:
    """Up to four different prompts spread evenly over the training prompts."""
    unique = list(dict.fromkeys(prompts))
    number = min(NUM_DEFAULT_PROMPTS, len(unique))
    return [unique[i * len(unique) // number] for i in range(number)]


class Validation:
    """Writes `step-000100.png` into `folder`; the teacher's images are drawn once and kept there."""

    def __init__(
        self,
        adapter: ModelAdapter,
        folder: Path,
        *,
        encode: Callable[[list[str]], Condition],
        prompts: list[str],
        num_seeds: int,
        latent_shape: tuple[int, int, int],
        batch_size: int,
        device: torch.device,
    ):
        self.adapter, self.folder, self.batch_size = adapter, folder, batch_size
        self.device = device
        self.prompts, self.num_seeds = prompts, num_seeds
        self.seeds = [seed for _ in prompts for seed in range(num_seeds)]
        self.latent_shape = latent_shape
        self.cond = encode(prompts)[torch.arange(len(prompts)).repeat_interleave(num_seeds)]
        self.uncond = encode([""])

    def teacher_images(self, teacher: GuidedTeacher) -> Tensor:
        """The guided teacher's images, read from the folder if they were drawn with the same settings."""
        grid, scale = teacher.grid, teacher.guidance.scale
        settings = [self.prompts, self.num_seeds, list(self.latent_shape), grid.times, scale]
        self.identity = f"teacher-{key_of(json.dumps(settings))[:12]}"
        self._teacher_file = self.folder / f"{self.identity}.safetensors"
        kept = _read_images(self._teacher_file)
        self._is_kept = kept is not None
        if all(on_all_processes(lambda: self._is_kept)):
            assert kept is not None  # all includes this process
            return kept

        def latents(rows: slice, cond: Condition) -> Tensor:
            noise = image_noise(self.seeds[rows], self.latent_shape).to(self.device)
            return teacher.rollout(noise, cond, self.uncond.to(self.device).expand(len(cond)))

        return self._decode(latents)

    def student_images(self, denoise: Denoiser, grid: Grid, kind: StudentKind) -> Tensor:
        """The student's images of the same prompts and seeds."""

        def latents(rows: slice, cond: Condition) -> Tensor:
            return student_samples(
                denoise,
                self.adapter.path,
                self.seeds[rows],
                self.latent_shape,
                cond,
                grid=grid,
                kind=kind,
                device=self.device,
            )

        return self._decode(latents)

    @torch.no_grad()
    def _decode(self, latents: Callable[[slice, Condition], Tensor]) -> Tensor:
        """One image per prompt and seed, (num_prompts * num_seeds, 3, H, W) on the CPU.

        The autoencoder is on the device only while it decodes, one image at a time: a large one takes gigabytes.
        """
        starts = range(0, len(self.seeds), self.batch_size)
        chunks = [slice(start, start + self.batch_size) for start in starts]
        samples = [latents(rows, self.cond[rows].to(self.device)) for rows in chunks]
        self.adapter.vae.to(self.device)
        images = torch.cat(
            [self.adapter.decode(image).float().cpu() for sample in samples for image in sample.split(1)]
        )
        self.adapter.vae.to("cpu")
        return images

    def draw(self, step: int, teacher: Tensor, student: Tensor) -> Path:
        """Draw the picture of a step (`validation.picture`); keep the teacher's images and the prompts as well.

        Raises OSError when they cannot be written.
        """
        if not self._is_kept:
            write_tensors(self._teacher_file, {"images": teacher})
            write_text(self.folder / "prompts.txt", "".join(f"{' '.join(p.split())}\n" for p in self.prompts))
            self._is_kept = True
        path = picture_path(self.folder, step)
        write_png(path, picture(teacher, student, self.prompts))
        return path


def _read_images(path: Path) -> Tensor | None:
    """The stored images; None if the file is missing or broken."""
    try:
        return read_tensors(path)["images"]
    except (ValueError, KeyError, OSError):
        return None
