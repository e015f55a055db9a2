"""Training settings by kind of model: the one table from which `dpdmd new` and the shipped recipes take their numbers.

A kind is how large the latents of an image are, and whether all weights or adapters are trained. To change a number for
every written and shipped recipe, change it here and run `python -m tools.recipes`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from dpdmd.method.rollout import StudentKind

Size = Literal["small", "large"]
Trained = Literal["all", "adapters"]

SMALL = 4096  # values in the latents of one image: the built-in worlds have 256, Stable Diffusion XL 65,536


@dataclass(frozen=True)
class TrainingSettings:
    """The numbers of one kind; their names are those of the recipe's keys.

    batch_size, accumulation: samples per micro-batch, and micro-batches per update. anchor_weight: of a network that
    predicts velocity, compared in velocity, and of one that predicts eps or v, compared in x0. anchor_guidance: the
    anchor's guidance scale as a share of the teacher's, of a network that predicts velocity; of others it is 1.
    """

    precision: Literal["fp32", "bf16"]
    student_kind: StudentKind
    num_updates: int
    batch_size: int
    accumulation: int
    fake_updates: int
    ida_decay: float
    reuse_samples: bool | Literal["student"]
    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"]
    random_step: bool
    ema_decay: float
    tau_shift: float
    anchor_weight: float
    anchor_fraction: float
    anchor_guidance: float
    validation_every: int
    checkpoint_every: int


# What makes a cycle cheap, measured on both built-in teachers (benchmarks/other_seeds.py, docs/results.md): the anchor
# holds the modes, so that one fake-score update is enough, on samples that are there anyway, and half of the samples
# need an anchor. The fake score is drawn to the student, so that it lags less. A flow's anchor is guided a little less
# than its teacher, since the later steps cost a little diversity. Noise renewed before the last step makes images
# cleaner.
_CHEAP = {
    "student_kind": "renoise_last",
    "fake_updates": 1,
    "ida_decay": 0.97,
    "reuse_samples": "student",
    "schedule": "cosine",
    "anchor_fraction": 0.5,
    "anchor_guidance": 13 / 14,
}
# Teacher steps to the anchor of a network that predicts noise, one fewer than the default: its target x0 takes one more
# call. With four, students were the same over five seeds (diversity 1.07, Frechet distance 0.24 instead of 0.23).
NOISE_ANCHOR_STEPS = 3
# The rest as in arXiv 2602.03139, except for the anchor's weight: with one fake-score update a weight of 0.05 left a
# student twice as far from its teacher as 1 did (one seed, docs/negative-results.md). For noise prediction it loses a
# quarter of the diversity.
_LARGE = _CHEAP | {
    "precision": "bf16",
    "num_updates": 6000,
    "batch_size": 4,
    "accumulation": 8,
    "learning_rate": 1e-5,
    "ema_decay": 0.0,
    "tau_shift": 1.0,
    "anchor_weight": 1.0,
    "validation_every": 100,
    "checkpoint_every": 500,
}
# Measured on the built-in teachers (docs/results.md).
_SMALL = _CHEAP | {
    "precision": "fp32",
    "num_updates": 300,
    "batch_size": 32,
    "accumulation": 1,
    "learning_rate": 5e-4,
    "random_step": True,
    "ema_decay": 0.95,
    "tau_shift": 0.5,
    "anchor_weight": 1.0,
    "validation_every": 50,
    "checkpoint_every": 50,
}
SETTINGS: dict[tuple[Size, Trained], TrainingSettings] = {
    ("large", "all"): TrainingSettings(**_LARGE, random_step=False),
    # On one frozen backbone memory is short, and one random step needs less of it.
    ("large", "adapters"): TrainingSettings(**_LARGE, random_step=True),
    ("small", "all"): TrainingSettings(**_SMALL),
    ("small", "adapters"): TrainingSettings(**_SMALL),
}

# Keys that a family has in every recipe, by the class of its pipeline. The authors of DP-DMD distil Qwen-Image to a
# re-noising student; its model card draws square pictures at this size. FLUX.2-klein's own shift is 9.9 at 4 steps, so
# that step 1 would land at 0.97, where nothing is decided yet; with 3 it lands at 0.9, as that of other large models.
# LongCat-Image's stock call takes no callback, which renewed noise would need.
OF_FAMILY: dict[str, dict[str, Any]] = {
    "Flux2KleinPipeline": {"student.shift": 3.0},
    "LongCatImagePipeline": {"student.kind": "ode"},
    "QwenImagePipeline": {"student.kind": "renoise", "model.height": 1328, "model.width": 1328},
}


def settings_for(latent_shape: tuple[int, int, int], trained: Trained) -> TrainingSettings:
    """The settings of a model with latents of this shape (C, H, W)."""
    channels, height, width = latent_shape
    return SETTINGS["small" if channels * height * width <= SMALL else "large", trained]
