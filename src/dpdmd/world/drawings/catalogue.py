"""The drawings themselves: 32 x 32 pictures of things, each by several hands, and what each of them shows.

`pictures.webp` has a row per thing and a column per hand; `drawings.json` names things, groups and hands.
ATTRIBUTION.md names the authors and licences.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from dpdmd.store.files import read_json
from dpdmd.store.png import read_png

IMAGE_SIZE = 32


@dataclass(frozen=True)
class Catalogue:
    """N drawings of T things in G groups by at most K hands.

    images: (N, 3, 32, 32) in [-1, 1]. thing, group, hand: (N,) indices into the names.
    """

    images: Tensor
    thing: Tensor
    group: Tensor
    hand: Tensor
    things: tuple[str, ...]
    groups: tuple[str, ...]
    hands: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@cache
def catalogue() -> Catalogue:
    """The shipped drawings, in the order of the things and, within one, of the hands."""
    folder = files("dpdmd.world.drawings")
    index = read_json(str(folder / "drawings.json"))
    sheet = read_png(str(folder / "pictures.webp"))
    groups = tuple(dict.fromkeys(thing["group"] for thing in index["things"]))
    rows = [
        (number, groups.index(thing["group"]), hand)
        for number, thing in enumerate(index["things"])
        for hand in thing["hands"]
    ]
    thing, group, hand = torch.tensor(rows).unbind(1)
    cells = sheet.unflatten(2, (-1, IMAGE_SIZE)).unflatten(1, (-1, IMAGE_SIZE)).permute(1, 3, 0, 2, 4)
    names = tuple(thing["name"] for thing in index["things"])
    return Catalogue(cells[thing, hand].contiguous(), thing, group, hand, names, groups, tuple(index["hands"]))
