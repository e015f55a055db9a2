"""What a built-in world is to the rest of the package: prompts, and an exact reading of images of these prompts.

A world is a folder or module of `dpdmd.world` that makes one `World`; `world/find.py` lists them. Evaluation, the
comparison, the demo and the report know worlds by this interface alone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PromptReading:
    """What was read in the images of one prompt.

    num_right: how many named properties were drawn right, of num_named over all images. validity: share of images that
    are clean images of the world. free_entropy: entropy in nats of what the prompt leaves open, among its valid images;
    None with too few of them, or if nothing is open.
    """

    num_right: int
    num_named: int
    validity: float
    free_entropy: float | None


@dataclass(frozen=True)
class WorldReading:
    """What was read in the images of several prompts.

    per_prompt: in the order of the prompts. values: further exact metrics of all images, under the names that
    docs/evaluation.md defines, as plain numbers that can be written as JSON.
    """

    per_prompt: list[PromptReading]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """A built-in world.

    name: as in `data.prompts`. teachers: names of its built-in teachers. image_size: height and width in pixels.
    captions: every prompt that its reader understands. training_prompts, evaluation_prompts: the default lists.
    read: the reading of images (P * R, 3, H, W) in [-1, 1] of P prompts, R of each in the order of the prompts, and
    optionally of a reference, as many images of another model of the same prompts. It raises ValueError for images of
    another size, or with values that are not finite.
    features: the built-in network whose features measure diversity in this world.
    """

    name: str
    teachers: tuple[str, ...]
    image_size: int
    captions: Callable[[], Collection[str]]
    training_prompts: Callable[[], list[str]]
    evaluation_prompts: Callable[[], list[str]]
    read: Callable[[Sequence[str], Tensor, Tensor | None], WorldReading]
    features: str

    def knows(self, prompts: Collection[str]) -> bool:
        """Whether every prompt is one of the world's captions."""
        return set(prompts) <= set(self.captions())
