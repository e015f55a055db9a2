"""The teacher's samples of fixed pairs of prompt and noise, on disk: made when first needed, read afterwards.

    FOLDER/KE/KEY.safetensors

KEY is a hash of the teacher's content, how it is sampled, the prompts, and the seed of the noise
(`store.tensor_store.TensorStore`): runs with the same key share the file, and a damaged file is made again.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.data.embeddings import pipeline_digest
from dpdmd.models.base import ModelAdapter
from dpdmd.models.identity import loras_identity
from dpdmd.recipe.plan import Plan
from dpdmd.store.cache import cache_folder
from dpdmd.store.digests import key_of
from dpdmd.store.tensor_store import TensorStore
from dpdmd.training.data import MicroBatch


class TeacherSamples:
    """x0 of the guided teacher for micro-batches whose noise has seeds."""

    def __init__(
        self,
        folder: Path,
        teacher: str,
        sample: Callable[[MicroBatch], Tensor],
        on_any_process: Callable[[bool], bool] = bool,
    ):
        """teacher: what identifies the teacher and how it is sampled (`teacher_identity`).

        sample: the teacher's x0 (B, C, H, W) of a micro-batch, called when the folder lacks one of them.
        on_any_process: whether a flag is set on any process. If one samples, all do: a sharded teacher needs them.
        """
        self.store, self.teacher = TensorStore(folder), teacher
        self.sample, self.on_any_process = sample, on_any_process

    def __call__(self, batch: MicroBatch) -> Tensor:
        """(B, C, H, W) in fp32 on the device of the noise.

        A micro-batch is sampled as a whole even if only one sample is missing, so that samples do not depend on when a
        run was interrupted.
        """
        assert batch.noise_seeds is not None  # see the class
        negatives = batch.negatives or ("",) * len(batch.prompts)
        samples = zip(batch.prompts, batch.noise_seeds, negatives, strict=True)
        keys = [
            key_of(self.teacher, prompt, str(seed), *([negative] if negative else []))
            for prompt, seed, negative in samples
        ]
        entries = [self.store.read(key) for key in keys]
        if self.on_any_process(any(entry is None for entry in entries)):
            fresh = self.sample(batch).float().cpu()
            for i, key in enumerate(keys):
                if entries[i] is None:
                    entries[i] = entry = {"x0": fresh[i]}
                    self.store.write(key, entry)
        return torch.stack([entry["x0"] for entry in entries if entry is not None]).to(batch.noise.device)


def samples_folder(cache: str | None) -> Path:
    """Where the samples are kept: `cache`/teacher_samples, by default in the user's cache."""
    return cache_folder("teacher_samples") if cache is None else Path(cache) / "teacher_samples"


def teacher_identity(plan: Plan, adapter: ModelAdapter) -> str:
    """What samples depend on, except prompt and noise: the teacher with its grid, guidance, size and precision."""
    settings = [
        plan.teacher.grid.times,
        plan.teacher.guidance.scale,
        plan.embedded_guidance["teacher"],
        plan.latent_shape,
        plan.teacher.dtype,
        "bf16" if plan.compute.in_bf16 else "fp32",
    ]
    files = pipeline_digest(adapter, without=("vae", "scheduler"))
    return key_of(files, repr(settings), *loras_identity(adapter.loras))
