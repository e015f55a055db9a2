"""Prompt lists of the built-in world, for training students and for evaluating them."""

from dpdmd.method.randomness import generator
from dpdmd.world.captions import caption, sample_captions
from dpdmd.world.scenes import COLOURS, SHAPES, sample_scenes


def training_prompts(num_prompts: int = 4096) -> list[str]:
    """A fixed random draw of captions from the world's own distribution."""
    rng = generator(0, "training_prompts")
    return sample_captions(sample_scenes(num_prompts, rng), rng)


def evaluation_prompts() -> list[str]:
    """The 24 prompts "a COLOUR SHAPE", which leave background, size and side free."""
    return [caption({"shape": shape, "colour": colour}) for shape in SHAPES for colour in COLOURS]
