"""Tensors by key: what is read is what was written, or nothing."""

import os
import time

import pytest
import torch

from dpdmd.store.digests import key_of
from dpdmd.store.leftovers import STALE_SECONDS
from dpdmd.store.tensor_store import TensorGroups, TensorStore

KEY = key_of("an entry")
DAMAGES = {
    "cut": lambda data: data[:-1],
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "another dtype": lambda data: data.replace(b'"F32"', b'"I32"'),
    "renamed": lambda data: data.replace(b'"0/x"', b'"0/y"'),
    "no header": lambda data: b"no",
    "empty": lambda data: b"",
}


def entry(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(3, 4, generator=rng),
        "half": torch.randn(2, generator=rng).bfloat16(),
        "n": torch.tensor(7),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_an_entry_is_read_back_bit_for_bit_by_any_process(tmp_path):
    TensorStore(tmp_path).write(KEY, entry())
    assert_same(TensorStore(tmp_path).read(KEY), entry())
    assert TensorStore(tmp_path).read(key_of("another")) is None
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [f"{KEY[:2]}/{KEY}.safetensors"]


def test_equal_entries_are_equal_files(tmp_path):
    for name in ("a", "b"):
        TensorStore(tmp_path / name).write(KEY, entry())
        TensorGroups(tmp_path / name).write({KEY: entry(), key_of("another"): entry(1)})
    a, b = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("a", "b"))
    assert a == b and len(a) == 2


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_missing_and_gone(tmp_path, damage, caplog):
    store = TensorStore(tmp_path)
    store.write(KEY, entry())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert store.read(KEY) is None and not path.exists()
    assert [message.startswith(f"{path} is damaged") for message in caplog.messages] == [True]
    store.write(KEY, entry())
    assert_same(store.read(KEY), entry())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_group_is_missing_and_gone_and_others_stay(tmp_path, damage):
    one, two = {key_of("a"): entry(0), key_of("b"): entry(1)}, {key_of("c"): entry(2)}
    groups = TensorGroups(tmp_path)
    groups.write(one)
    (path,) = tmp_path.iterdir()
    groups.write(two)
    path.write_bytes(damage(path.read_bytes()))
    assert groups.missing([*one, *two, *one]) == list(one)
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    groups.write(one)
    assert groups.missing([*one, *two]) == []
    for key, expected in (one | two).items():
        assert_same(groups.read(key), expected)


def test_an_entry_under_another_name_is_not_taken_for_it(tmp_path):
    store, other = TensorStore(tmp_path), KEY[:2] + key_of("another")[2:]
    store.write(KEY, entry())
    (path,) = tmp_path.rglob("*.safetensors")
    path.rename(path.with_name(f"{other}.safetensors"))
    assert store.read(other) is None


def test_files_of_other_origin_are_neither_read_nor_removed(tmp_path):
    from dpdmd.store.tensors import write_tensors

    write_tensors(tmp_path / "mine.safetensors", entry(), {"prompts": "[]"})
    assert TensorGroups(tmp_path).missing([KEY]) == [KEY] and (tmp_path / "mine.safetensors").exists()


def test_rows_of_one_batch_can_be_stored(tmp_path):
    batch = torch.arange(12.0).reshape(3, 4)
    groups = TensorGroups(tmp_path)
    groups.write({key_of(str(i)): {"row": batch[i]} for i in range(3)})
    assert groups.missing([key_of("2")]) == [] and torch.equal(groups.read(key_of("2"))["row"], batch[2])


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path):
    store, groups = TensorStore(tmp_path), TensorGroups(tmp_path)
    old, new = ([folder / f".{name}.ab.tmp.safetensors" for folder in (tmp_path, tmp_path / KEY[:2])]
                for name in ("old", "new"))  # fmt: skip
    for path in (*old, *new):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (then := time.time() - STALE_SECONDS - 1, then))
    groups.missing([KEY])
    store.write(KEY, entry())
    assert not any(path.exists() for path in old) and all(path.exists() for path in new)
