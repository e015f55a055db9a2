"""Prompt lists of the built-in world: what students are trained on, and what they are judged on."""

from dpdmd.method.randomness import generator
from dpdmd.world.captions import caption, sample_captions
from dpdmd.world.scenes import COLOURS, SHAPES, sample_scenes


def training_prompts(num_prompts: int = 4096) -> list[str]:
    """Captions as the world itself utters them, a fixed draw."""
    rng = generator(0, "training_prompts")
    return sample_captions(sample_scenes(num_prompts, rng), rng)


def evaluation_prompts() -> list[str]:
    """The 24 prompts "a COLOUR SHAPE": background, size and side are left free."""
    return [caption({"shape": shape, "colour": colour}) for shape in SHAPES for colour in COLOURS]
