"""Randomness as a value: every draw of a run comes from a generator named by (seed, stream, step, rank).

Nothing keeps random state between steps, so a resumed run needs no stored generator and draws the same numbers.
"""

import hashlib

import torch


def generator(seed: int, stream: str, step: int = 0, rank: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose (`stream`, such as "student_noise") at one step on one rank.

    Different arguments give independent generators; equal arguments the same one on every machine.
    """
    key = hashlib.sha256(f"{seed}/{stream}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
