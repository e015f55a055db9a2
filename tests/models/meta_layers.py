"""Layers of a checkpoint on the meta device, for tables of its tensors: {name: tensor}."""

import torch

Table = dict[str, torch.Tensor]


def linear(name: str, rows: int, columns: int) -> Table:
    """A weight and a bias."""
    return matrix(name, rows, columns) | tensor(f"{name}.bias", rows)


def matrix(name: str, rows: int, columns: int) -> Table:
    """A weight without a bias."""
    return tensor(f"{name}.weight", rows, columns)


def conv(name: str, *shape: int) -> Table:
    """A weight of this shape and a bias."""
    return tensor(f"{name}.weight", *shape) | tensor(f"{name}.bias", shape[0])


def norm(name: str, size: int) -> Table:
    """A weight and a bias of one dimension."""
    return tensor(f"{name}.weight", size) | tensor(f"{name}.bias", size)


def tensor(name: str, *shape: int) -> Table:
    """One tensor, under its whole name."""
    return {name: torch.empty(shape, device="meta")}
