"""The families whose tiny pipelines the tests use (tiny_FAMILY.py), and how tests of several modes share them."""

from collections.abc import Mapping
from typing import Any

import pytest

FAMILIES = [
    *("sd3", "sdxl", "sdxl_v", "sana", "z_image", "flux", "qwen_image"),
    *("flux2_klein", "krea2", "lumina2", "sd1", "sd2", "pixart_sigma", "longcat_image", "ernie_image", "chroma"),
]
EVERY_MODE = ("sd3", "sdxl")  # a flow by a transformer, and noise by a U-Net


def taking_turns(name: str, modes: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrises a test by `family` and `name`: every mode with EVERY_MODE, one each with the other families.

    modes: {id: value}. What modes do is the same code for all families; what a family can break, it breaks in any.
    """
    cases, ids, turn = [], list(modes), 0
    for family in FAMILIES:
        if family in EVERY_MODE:
            chosen = ids
        else:
            chosen, turn = [ids[turn % len(ids)]], turn + 1
        cases += [pytest.param(family, modes[mode], id=f"{family}-{mode}") for mode in chosen]
    return pytest.mark.parametrize(("family", name), cases, indirect=["family"])
