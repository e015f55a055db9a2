"""Content as hashes: of files and of networks."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(network: nn.Module) -> str:
    """A hash of the beginnings of all parameters, by which to tell another model from this one."""
    beginnings = torch.cat([parameter.detach().flatten()[:16].float() for parameter in network.parameters()])
    return hashlib.sha256(beginnings.cpu().numpy().tobytes()).hexdigest()[:16]
