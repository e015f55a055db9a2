"""Prompts of the drawings: a thing, a group of things or nothing, in plain words and several wordings."""

from functools import cache

import torch
from torch import Tensor

from dpdmd.method.randomness import generator
from dpdmd.world.drawings.catalogue import catalogue

WORDINGS = ("{}", "a drawing of {}", "a picture of {}")
EMPTY = ""
# Shares of the training prompts; the rest are things.
GROUP_PROB = 0.1
NUM_TRAINING_PROMPTS = 4096
NUM_EVALUATION_PROMPTS = 24


def with_article(name: str) -> str:
    """A name with its article: "a cactus", "an ear of corn"; "some sushi" stays as it is."""
    if name.startswith("some "):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(name: str, wording: int = 0) -> str:
    """The caption of a thing or a group by its name, in one of WORDINGS."""
    return WORDINGS[wording].format(with_article(name))


@cache
def drawings_of() -> dict[str, Tensor]:
    """Every caption with the indices of the drawings that it may mean, in the catalogue's order."""
    known = catalogue()
    members = {EMPTY: torch.arange(len(known))}
    for names, index in ((known.groups, known.group), (known.things, known.thing)):
        for number, name in enumerate(names):
            members |= {caption(name, i): (index == number).nonzero().squeeze(1) for i in range(len(WORDINGS))}
    return members


def training_prompts(num_prompts: int = NUM_TRAINING_PROMPTS) -> list[str]:
    """A fixed random draw of captions: groups with GROUP_PROB, else things, all in any wording."""
    known, rng = catalogue(), generator(0, "drawings_training_prompts")
    of_group = torch.rand(num_prompts, generator=rng) < GROUP_PROB
    group, thing, wording = (
        torch.randint(0, high, (num_prompts,), generator=rng).tolist()
        for high in (len(known.groups), len(known.things), len(WORDINGS))
    )
    return [
        caption(known.groups[group[i]] if of_group[i] else known.things[thing[i]], wording[i])
        for i in range(num_prompts)
    ]


def evaluation_prompts() -> list[str]:
    """24 things, evenly spaced in the catalogue, so that most groups are among them."""
    things = catalogue().things
    return [caption(things[i * len(things) // NUM_EVALUATION_PROMPTS]) for i in range(NUM_EVALUATION_PROMPTS)]
