"""The drawings as a built-in world: what the oracle's readings say about each prompt."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpdmd.world.base import PromptReading, World, WorldReading
from dpdmd.world.drawings.captions import drawings_of, evaluation_prompts, training_prompts
from dpdmd.world.drawings.catalogue import IMAGE_SIZE
from dpdmd.world.drawings.oracle import DrawingReading, read_drawings
from dpdmd.world.statistics import entropy, expected_entropy, total_variation, total_variation_floor


def read_images(prompts: Sequence[str], images: Tensor, reference: Tensor | None = None) -> WorldReading:
    """Read drawings; see `World.read` for the arguments.

    An image is right if the nearest of all drawings is one that its prompt may mean. The modes of a prompt are these
    drawings, all equally likely; they are counted among valid and right images. The values are means over prompts with
    at least two such images:
        effective_modes_mean: exp of the mean entropy minus that of as many exact samples; 1 = nothing is lost;
        modes_share: effective modes / number of drawings; coverage: share of the drawings that were drawn at all;
        total_variation_true, _floor, and _reference (over prompts for which the reference has two such images too).
    Raises ValueError like `read_drawings`.
    """
    num = len(images) // len(prompts)
    reading, other = read_drawings(images), None if reference is None else read_drawings(reference)
    rows, found = [], []
    for i, prompt in enumerate(prompts):
        of_prompt = slice(i * num, (i + 1) * num)
        ours, right = _counts(prompt, reading[of_prompt])
        free = float(entropy(ours)) if ours.sum() >= 2 else None
        rows.append(PromptReading(right, num, float(reading.valid[of_prompt].double().mean()), free))
        if free is not None:
            theirs = None if other is None else _counts(prompt, other[of_prompt])[0]
            found.append(_prompt_values(ours, free, theirs))
    values: dict[str, Any] = {}
    for key in (
        "modes_share",
        "coverage",
        "total_variation_true",
        "total_variation_floor",
        "total_variation_reference",
    ):
        column = [row[key] for row in found if key in row]
        if column or (key != "total_variation_reference" or reference is not None):
            values[key] = sum(column) / len(column) if column else None
    lost = [row["lost_entropy"] for row in found]
    values["effective_modes_mean"] = math.exp(-sum(lost) / len(lost)) if lost else None
    return WorldReading(rows, values)


def _counts(prompt: str, reading: DrawingReading) -> tuple[Tensor, int]:
    """How often each drawing that the prompt may mean was drawn cleanly, (M,), and how many images are right."""
    members = drawings_of()[prompt]
    right = torch.isin(reading.drawing, members)
    place = torch.searchsorted(members, reading.drawing[right & reading.valid])
    return torch.bincount(place, minlength=len(members)), int(right.sum())


def _prompt_values(counts: Tensor, free: float, reference: Tensor | None) -> dict[str, float]:
    uniform, num = torch.full((len(counts),), 1 / len(counts), dtype=torch.float64), int(counts.sum())
    values = {
        "lost_entropy": expected_entropy(uniform, num) - free,
        "modes_share": math.exp(free) / len(counts),
        "coverage": float((counts > 0).double().mean()),
        "total_variation_true": float(total_variation(counts, uniform)),
        "total_variation_floor": total_variation_floor(uniform, num),
    }
    if reference is not None and reference.sum() >= 2:
        values["total_variation_reference"] = float(total_variation(counts, reference))
    return values


WORLD = World(
    name="drawings",
    teachers=("drawings",),
    image_size=IMAGE_SIZE,
    captions=drawings_of,
    training_prompts=training_prompts,
    evaluation_prompts=evaluation_prompts,
    read=read_images,
    features="drawings",
)
