"""The scenes as a built-in world: the oracle's readings, and what they say about each prompt."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpdmd.world.base import PromptReading, World, WorldReading
from dpdmd.world.captions import all_captions, named_factors
from dpdmd.world.metrics import DEPENDS_ON, scene_metrics
from dpdmd.world.oracle import Reading, read_scenes
from dpdmd.world.prompts import evaluation_prompts, training_prompts
from dpdmd.world.scenes import DISCRETE_FACTORS, IMAGE_SIZE
from dpdmd.world.statistics import entropy

TOTAL_VARIATIONS = ("total_variation_true", "total_variation_floor", "total_variation_reference")


def read_images(prompts: Sequence[str], images: Tensor, reference: Tensor | None = None) -> WorldReading:
    """Read scenes; see `World.read` for the arguments.

    The named properties are factors, and the free entropy is averaged over the factors that a prompt leaves open. The
    values are those of `scene_metrics`; the total variations are averaged over factors, and given by factor too.
    Raises ValueError like `read_scenes`.
    """
    num = len(images) // len(prompts)
    reading = read_scenes(images)
    other = None if reference is None else read_scenes(reference)
    exact = scene_metrics([prompt for prompt in prompts for _ in range(num)], reading, reference=other)
    values: dict[str, Any] = {}
    for key in TOTAL_VARIATIONS:
        if key in exact:
            by_factor = [value for value in exact[key].values() if value is not None]
            values[key] = sum(by_factor) / len(by_factor) if by_factor else None
            values[f"{key}_by_factor"] = exact[key]
    values |= {key: exact[key] for key in ("named_accuracy_by_factor", "spread", "spread_true")}
    values["effective_modes_by_factor"] = exact["effective_modes"]
    values["effective_modes_exact_by_factor"] = exact["effective_modes_exact"]
    values["effective_modes_mean"] = exact["effective_modes_mean"]
    rows = [_prompt_reading(prompt, reading[i * num : (i + 1) * num]) for i, prompt in enumerate(prompts)]
    return WorldReading(rows, values)


def _prompt_reading(prompt: str, reading: Reading) -> PromptReading:
    named, valid = named_factors(prompt), reading.valid
    right, entropies = 0, []
    for factor, values in DISCRETE_FACTORS.items():
        read = reading.scenes.discrete[factor]
        if factor in named:
            right += int((read == values.index(named[factor])).sum())
        elif factor in DEPENDS_ON and int(valid.sum()) >= 2:
            entropies.append(float(entropy(torch.bincount(read[valid], minlength=len(values)))))
    return PromptReading(
        right,
        len(named) * len(valid),
        float(valid.double().mean()),
        sum(entropies) / len(entropies) if entropies else None,
    )


@cache
def _captions() -> frozenset[str]:
    return frozenset(all_captions())


WORLD = World(
    name="scenes",
    teachers=("scenes", "scenes_eps"),
    image_size=IMAGE_SIZE,
    captions=_captions,
    training_prompts=training_prompts,
    evaluation_prompts=evaluation_prompts,
    read=read_images,
    features="scenes",
)
