"""Captions of scenes, which name some factors and leave the others free, in several wordings."""

import torch

from dpdmd.world.scenes import DISCRETE_FACTORS, Scenes

NAMEABLE_FACTORS = ("shape", "colour", "size", "background")
COLOUR_NAMED_PROB = 0.75
SIZE_NAMED_PROB = 0.4
BACKGROUND_NAMED_PROB = 0.3

ARTICLES = ("a", "the", "one")
BACKGROUND_WORDINGS = ("on a {} background", "on {}", "in front of {}")


def caption(named: dict[str, str], wording: int = 0) -> str:
    """Build a caption that names exactly the given factors, one of which must be the shape.

    `caption({"shape": "cross", "colour": "blue", "size": "small", "background": "white"})` returns
    "a small blue cross on a white background".
    wording: index of the phrasing; see `num_wordings`.
    """
    words = [ARTICLES[wording % len(ARTICLES)], named.get("size", ""), named.get("colour", ""), named["shape"]]
    if "background" in named:
        wording_of_background = BACKGROUND_WORDINGS[wording // len(ARTICLES) % len(BACKGROUND_WORDINGS)]
        words.append(wording_of_background.format(named["background"]))
    return " ".join(word for word in words if word)


def num_wordings(named: dict[str, str]) -> int:
    """The number of different captions that name exactly these factors."""
    return len(ARTICLES) * (len(BACKGROUND_WORDINGS) if "background" in named else 1)


def named_factors(text: str) -> dict[str, str]:
    """Parse the factors that a prompt names, ignoring unknown words; the inverse of `caption`."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    return {factor: value for factor in NAMEABLE_FACTORS for value in DISCRETE_FACTORS[factor] if value in words}


def sample_captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """Draw a correct caption for each scene; it always names the shape, and each other factor with its *_NAMED_PROB."""
    probs = torch.tensor([1.0, COLOUR_NAMED_PROB, SIZE_NAMED_PROB, BACKGROUND_NAMED_PROB])
    keep = torch.rand(len(scenes), 4, generator=generator) < probs
    wordings = torch.randint(0, len(ARTICLES) * len(BACKGROUND_WORDINGS), (len(scenes),), generator=generator)
    texts = []
    for i in range(len(scenes)):
        named = {
            factor: DISCRETE_FACTORS[factor][int(scenes.discrete[factor][i])]
            for j, factor in enumerate(NAMEABLE_FACTORS)
            if keep[i, j]
        }
        texts.append(caption(named, int(wordings[i])))
    return texts


def all_captions() -> list[str]:
    """List every caption of the world once, in a fixed order."""
    texts = []
    options = [[None, *DISCRETE_FACTORS[factor]] for factor in NAMEABLE_FACTORS[1:]]
    for shape in DISCRETE_FACTORS["shape"]:
        for colour in options[0]:
            for size in options[1]:
                for background in options[2]:
                    values = {"shape": shape, "colour": colour, "size": size, "background": background}
                    named = {factor: value for factor, value in values.items() if value is not None}
                    texts += [caption(named, wording) for wording in range(num_wordings(named))]
    return texts
