"""Read all weights of a student: of its own folder, or of a checkpoint, whose tensors may be spread over files."""

import warnings
from pathlib import Path
from typing import cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, TensorStorageMetadata

from dpdmd.models.student_file import student_weights
from dpdmd.store.tensors import read_tensors


def load_weights(network: nn.Module, student: Path, source: str) -> None:
    """Load the student in the folder `student` into a network of its base `source`.

    A checkpoint holds no buffers, which training does not change. Raises ValueError when it does not fit the network.
    """
    path = student_weights(student)
    assert path is not None, "a student has weights"
    weights = read_shares(path) if path.is_dir() else read_tensors(path)
    kept = {name: buffer for name, buffer in network.named_buffers() if name in network.state_dict()}
    try:
        network.load_state_dict(kept | weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {source}: {error}") from None


@torch.no_grad()
def read_shares(folder: Path) -> dict[str, Tensor]:
    """Whole tensors from the files of a checkpoint of a sharded run, each of which holds what one process had."""
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    sizes = {name: cast("TensorStorageMetadata", tensor) for name, tensor in stored.items()}
    tensors = {name: torch.empty(tensor.size, dtype=tensor.properties.dtype) for name, tensor in sizes.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return tensors
