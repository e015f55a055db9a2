"""Which weights were used."""

import shutil

import pytest
import torch

from dpdmd.store.digests import sha256_of
from dpdmd.store.tensors import write_tensors
from dpdmd.vision.weights import find_weights


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "own"
    write_tensors(path / "model.safetensors", {"x": torch.arange(3.0)})
    (path / "config.json").write_text("{}")
    (path / "README.md").write_text("not a part of the network")
    return path


def test_a_hub_snapshot_has_its_commit_and_the_hash_of_the_same_files_in_a_folder(folder, tmp_path, monkeypatch):
    """A hub cache keeps a large file under the hash of its content, which is taken from there, and links to it."""
    blob = tmp_path / "blobs" / sha256_of(folder / "model.safetensors")
    snapshot = tmp_path / "snapshots" / ("c0ffee" * 6 + "abcd")
    for path in (blob, snapshot / "x"):
        path.parent.mkdir(parents=True)
    shutil.copy(folder / "model.safetensors", blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    shutil.copy(folder / "config.json", snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(snapshot))
    own, hub = find_weights(folder), find_weights("someone/model")
    assert (own.revision, hub.revision) == (None, snapshot.name)
    assert own.sha256 == hub.sha256 and hub.facts()["name"] == "someone/model"


def test_the_hash_follows_every_file_of_the_network_and_no_other(folder):
    first = find_weights(folder).sha256
    (folder / "README.md").write_text("changed")
    assert find_weights(folder).sha256 == first
    (folder / "config.json").write_text('{"a": 1}')
    second = find_weights(folder).sha256
    (folder / "vocab.txt").write_text("new")
    assert len({first, second, find_weights(folder).sha256}) == 3


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no \.safetensors file; pickles \(\.pt, \.bin, \.pth\) are not read"):
        find_weights(tmp_path)
