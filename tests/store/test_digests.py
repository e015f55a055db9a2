"""Hashes follow the content and nothing else."""

import hashlib
import json
import os
import threading

import pytest
import torch

from dpdmd.store import digests
from dpdmd.store.digests import HASHES_FILE, file_digests, files_digest, key_of, sha256_of, tensors_digest


def test_texts_in_another_order_or_cut_elsewhere_are_others():
    assert key_of("a", "b") == hashlib.sha256(b"a\0b").hexdigest()
    assert len({key_of("a", "b"), key_of("b", "a"), key_of("ab"), key_of("a\nb")}) == 4


def test_tensors_differ_by_name_dtype_shape_and_value_and_by_nothing_else():
    x = torch.arange(6.0).reshape(2, 3)
    same = [{"x": x}, {"x": x.clone()}, {"x": x.T.contiguous().T}, {"x": x.clone().requires_grad_()}]
    assert len({tensors_digest(tensors) for tensors in same}) == 1
    changed = x.clone()
    changed[1, 2] += 1e-6
    others = [{"x": x}, {"y": x}, {"x": x.int()}, {"x": x.reshape(3, 2)}, {"x": changed}, {"x": -x}, {}]
    assert len({tensors_digest(tensors) for tensors in others}) == len(others)
    assert tensors_digest({"x": x}, "fact") != tensors_digest({"x": x})
    assert tensors_digest({"a": x, "b": -x}) == tensors_digest({"b": -x, "a": x})


def test_a_folder_that_was_moved_is_the_same_and_a_changed_or_renamed_file_is_not(tmp_path):
    def digest(folder):
        return files_digest({path.name: path for path in folder.iterdir()}, "fact")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "two").write_text("2")
    before = digest(tmp_path / "a")
    assert digest((tmp_path / "a").rename(tmp_path / "b")) == before
    (tmp_path / "b" / "two").rename(tmp_path / "b" / "three")
    renamed = digest(tmp_path / "b")
    (tmp_path / "b" / "three").write_text("3")
    assert len({before, renamed, digest(tmp_path / "b")}) == 3


def test_no_file_is_trusted_by_its_name(tmp_path):
    blob = tmp_path / "models--a--b" / "blobs" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_text("weights")
    (tmp_path / "link").symlink_to(blob)
    true = hashlib.sha256(b"weights").hexdigest()
    assert file_digests([tmp_path / "link", blob], tmp_path / "memo") == [true, true]
    blob.write_text("other")
    assert file_digests([tmp_path / "link"], tmp_path / "memo") == [hashlib.sha256(b"other").hexdigest()]


def test_a_file_of_the_same_size_and_time_is_hashed_again(tmp_path):
    path, memo = tmp_path / "weights", tmp_path / "memo"
    path.write_text("one")
    before = path.stat()
    first = file_digests([path], memo)
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync -t do
    assert file_digests([path], memo) == [hashlib.sha256(b"two").hexdigest()] != first


@pytest.mark.parametrize("content", ["", "[]", "{half", '{"a": 1}', "\udcff", "[" * 100_000])
def test_a_memo_with_anything_else_in_it_counts_as_empty(tmp_path, content):
    (tmp_path / HASHES_FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    path = tmp_path / "weights"
    path.write_text("one")
    assert file_digests([path], tmp_path) == [hashlib.sha256(b"one").hexdigest()]


def test_a_memo_with_values_that_are_no_hashes_is_not_believed(tmp_path):
    path = tmp_path / "weights"
    path.write_text("one")
    file_digests([path], tmp_path)
    for value in ("abc", "0" * 63, None, [1]):
        (place,) = json.loads((tmp_path / HASHES_FILE).read_text())
        (tmp_path / HASHES_FILE).write_text(json.dumps({place: value}))
        assert file_digests([path], tmp_path) == [hashlib.sha256(b"one").hexdigest()]


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    path, memo = tmp_path / "weights", tmp_path / "memo"
    path.write_text("one")
    first = file_digests([path, path], memo)
    assert file_digests([path], memo) == first[:1] and hashed == [path]
    path.write_text("other")
    assert file_digests([path], memo) == [hashlib.sha256(b"other").hexdigest()] and hashed == [path, path]


def test_files_are_hashed_several_at_a_time_and_their_hashes_keep_their_order(tmp_path, monkeypatch):
    paths = [tmp_path / str(i) for i in range(8)]
    for path in paths:
        path.write_text(path.name)
    together = threading.Barrier(2, timeout=30)  # broken unless two threads meet

    def slow(path):
        together.wait()
        return sha256_of(path)

    monkeypatch.setattr(digests, "sha256_of", slow)
    assert file_digests(paths) == [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]


def test_a_memo_that_is_broken_or_cannot_be_written_is_done_without(tmp_path):
    path, true = tmp_path / "weights", hashlib.sha256(b"one").hexdigest()
    path.write_text("one")
    (tmp_path / HASHES_FILE).write_text("{half")
    assert file_digests([path], tmp_path) == [true]
    assert list(json.loads((tmp_path / HASHES_FILE).read_text()).values()) == [true]
    assert file_digests([path], path) == [true]  # a file where the memo's folder should be
