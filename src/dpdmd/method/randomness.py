"""Randomness as a value: every draw of a run comes from a generator named by (seed, stream, step, rank).

Nothing keeps random state between steps, so a resumed run needs no stored generator and draws the same numbers.
"""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, stream: str, step: int = 0, rank: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose (`stream`, such as "student_noise") at one step on one rank.

    Different arguments give independent generators; equal arguments the same one on every machine.
    """
    key = hashlib.sha256(f"{seed}/{stream}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


def image_generators(seeds: list[int]) -> list[torch.Generator]:
    """One generator per image, `torch.Generator().manual_seed(seed)` as stock diffusers makes them."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(generators: list[torch.Generator], shape: tuple[int, int, int]) -> Tensor:
    """The next noise of every image, (len(generators), C, H, W) on the CPU, each from its own generator.

    An image therefore depends neither on the batch it is in nor on the other seeds.
    """
    return torch.cat([torch.randn(1, *shape, generator=generator) for generator in generators])


def image_noise(seeds: list[int], shape: tuple[int, int, int]) -> Tensor:
    """The first noise of every image, (len(seeds), C, H, W) on the CPU."""
    return draw_noise(image_generators(seeds), shape)
