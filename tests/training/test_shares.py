"""Checkpoints of shares: each process writes its own, any number of processes reads them, bit for bit."""

from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from trainers import latest_and_messages

from dpdmd.distributed.processes import new_accelerator, rank_and_world_size
from dpdmd.method.randomness import generator
from dpdmd.models.weights import read_shares
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_tensors
from dpdmd.training.run import checkpoint as checkpoints
from dpdmd.training.run.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow

# In halves and thirds that are not equal, or empty.
SHAPES = {"matrix": (5, 3), "row": (1, 4), "short": (2,), "cube": (3, 1, 2)}


def whole_tensors(step: int) -> dict[str, torch.Tensor]:
    tensors = {name: torch.randn(shape, generator=generator(0, name, abs(step))) for name, shape in SHAPES.items()}
    return {name: step * t for name, t in tensors.items()} | {
        "count": torch.tensor(float(step))
    }  # AdamW's has no shape


def shares(step: int) -> dict[str, torch.Tensor]:
    number = rank_and_world_size()[1]
    if number == 1:
        return whole_tensors(step)
    mesh = init_device_mesh("cpu", (number,))
    return {name: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for name, t in whole_tensors(step).items()}


def save_shares(folder: Path, bytes_per_file: int) -> None:
    new_accelerator()
    checkpoints.BYTES_PER_FILE = bytes_per_file
    for step in (1, 2):
        save_checkpoint(folder, {"a": shares(step), "b": shares(-step)}, {"step": step}, keep=5, shares=True)


def expect_shares(folder: Path, step: int, num_messages: int = 0) -> None:
    """The newest undamaged checkpoint is that of `step`, and each process gets its own of it."""
    new_accelerator()
    checkpoint, messages = latest_and_messages(folder)
    assert (checkpoint.step, len(messages)) == (step, num_messages)
    for name, expected in (("a", whole_tensors(step)), ("b", whole_tensors(-step))):
        into = {key: torch.zeros_like(value) for key, value in shares(step).items()}
        checkpoint.load(name, into)
        for key, value in into.items():
            assert torch.equal(value.full_tensor() if isinstance(value, DTensor) else value, expected[key]), key
        with pytest.raises(ValueError, match="belongs to another network"):
            checkpoint.load(name, {**into, "more": torch.zeros(1)})


@pytest.mark.parametrize("bytes_per_file", [2**30, 16], ids=["one file", "several files"])
def test_each_process_writes_its_share_and_any_number_reads_them(tmp_path, bytes_per_file):
    in_processes(save_shares, tmp_path, bytes_per_file)
    folder = tmp_path / "step-000002"
    parts = {}
    for rank in (1, 2):
        files = sorted((folder / "a").glob(f"shard-{rank:05d}-*.safetensors"))
        assert (len(files) == 1) == (bytes_per_file > 16)
        parts[rank] = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    for name, expected in whole_tensors(2).items():
        pieces = [part[name] for part in parts.values() if name in part]
        assert torch.equal(torch.cat(pieces) if expected.ndim else pieces[0], expected)
        assert (
            [len(piece) for piece in pieces] == [-(-len(expected) // 2), len(expected) // 2] if expected.ndim else [1]
        )
    assert read_json(folder / "state.json")["sha256"].keys() == {
        file.relative_to(folder).as_posix() for file in folder.glob("*/*")
    }
    expect_shares(tmp_path, 2)
    whole, expected = read_shares(folder / "a"), whole_tensors(2)  # as a student is sampled from it
    assert whole.keys() == expected.keys() and all(torch.equal(whole[name], expected[name]) for name in whole)
    for number in (2, 3):
        in_processes(expect_shares, tmp_path, 2, number=number)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_share_is_found_by_all_processes(tmp_path, damage):
    in_processes(save_shares, tmp_path, 2**30)
    damage(next((tmp_path / "step-000002" / "b").glob("shard-00002-*")))
    expect_shares(tmp_path, 1, 1)
    in_processes(expect_shares, tmp_path, 1, 1)
