"""The teacher's samples of a pool of (prompt, noise) pairs, on disk: made when first needed, read ever after.

    FOLDER/teacher_samples/KEY/NAME.safetensors

KEY names the teacher by its content and how it is sampled, NAME a prompt and the seed of its noise: runs that ask for
the same share the file, and writers of one file write the same. What was damaged is made again.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpdmd.data.embeddings import pipeline_digest
from dpdmd.models.base import ModelAdapter
from dpdmd.recipe.plan import Plan
from dpdmd.store.tensors import write_tensors
from dpdmd.training.data import MicroBatch


class TeacherSamples:
    """x0 of the guided teacher for micro-batches whose noise has seeds."""

    def __init__(
        self, folder: Path, sample: Callable[[MicroBatch], Tensor], on_any_process: Callable[[bool], bool] = bool
    ):
        """sample: the teacher's x0 (B, C, H, W) of a micro-batch, called for those that the folder does not hold.

        on_any_process: whether a flag is up on some process. If one samples, all do: a sharded teacher needs them.
        """
        self.folder, self.sample, self.on_any_process = folder, sample, on_any_process

    def __call__(self, batch: MicroBatch) -> Tensor:
        """(B, C, H, W) in fp32 on the device of the noise.

        A micro-batch is sampled as a whole though only one of it is missing, so that a sample does not depend on how
        often a run was killed on the way to it.
        """
        paths = [self._path(prompt, seed) for prompt, seed in zip(batch.prompts, batch.noise_seeds, strict=True)]
        samples = [_read(path) for path in paths]
        if self.on_any_process(any(x0 is None for x0 in samples)):
            fresh = self.sample(batch).float().cpu()
            for i, path in enumerate(paths):
                if samples[i] is None:
                    samples[i] = fresh[i]
                    write_tensors(path, {"x0": fresh[i]}, {"sha256": _digest(fresh[i])})
        return torch.stack(samples).to(batch.noise.device)

    def _path(self, prompt: str, noise_seed: int) -> Path:
        return self.folder / f"{hashlib.sha256(f'{noise_seed}/{prompt}'.encode()).hexdigest()[:32]}.safetensors"


def samples_folder(root: Path, plan: Plan, adapter: ModelAdapter) -> Path:
    """Where the samples are of this teacher, sampled and computed as the plan says; `root`: of all caches."""
    settings = [
        pipeline_digest(adapter, root, without=("vae", "scheduler")),
        plan.teacher.grid.times,
        plan.teacher.guidance.scale,
        plan.embedded_guidance["teacher"],
        plan.latent_shape,
        plan.teacher.dtype,
        "bf16" if plan.compute.in_bf16 else "fp32",
    ]
    return root / "teacher_samples" / hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


def _digest(x0: Tensor) -> str:
    return hashlib.sha256(x0.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> Tensor | None:
    """x0 (C, H, W), None where there is no such file or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            x0, digest = file.get_tensor("x0"), file.metadata()["sha256"]
    except (OSError, SafetensorError, TypeError, KeyError):
        return None
    return x0 if _digest(x0) == digest else None
