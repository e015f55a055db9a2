"""Where caches are, and computing through one."""

from pathlib import Path

import pytest
import torch

from dpdmd.store.cache import cache_folder, through_cache
from dpdmd.store.digests import key_of


def test_the_folder_follows_our_variable_then_the_desktops_then_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("DPDMD_CACHE", "/mine")
    assert cache_folder("prompts") == Path("/mine/prompts")
    monkeypatch.setenv("DPDMD_CACHE", "")
    assert cache_folder("images") == Path("/caches/dpdmd/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("teacher_samples") == Path("/home/me/.cache/dpdmd/teacher_samples")


def test_without_a_home_the_variable_to_set_is_named(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DPDMD_CACHE")
    with pytest.raises(ValueError, match="set the environment variable DPDMD_CACHE"):
        cache_folder("prompts")
    monkeypatch.setenv("DPDMD_CACHE", "/mine")
    assert cache_folder("prompts") == Path("/mine/prompts")


def test_each_key_is_computed_once_and_what_was_there_before_an_interruption_stays(tmp_path):
    asked = []

    def compute(numbers, stop=None):
        for number in numbers:
            if number == stop:
                raise KeyboardInterrupt
            asked.append(number)
            yield {"x": torch.tensor(float(len(keys[number])))}

    keys = ["a", "bb", "a", "ccc"]
    with pytest.raises(KeyboardInterrupt):
        through_cache(tmp_path, keys, lambda numbers: compute(numbers, stop=3), what="test")
    rows = through_cache(tmp_path, keys, compute, what="test")
    assert [float(row["x"]) for row in rows] == [1, 2, 1, 3] and asked == [1, 2, 3]
    through_cache(None, keys, compute, what="test")
    assert sorted(asked) == [1, 1, 2, 2, 3, 3]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the place of a folder")
    computed = []

    def compute(numbers):
        for number in numbers:
            computed.append(number)
            yield {"x": torch.tensor([float(number)])}

    keys = [key_of(text) for text in "aba"]
    rows = through_cache(tmp_path / "file", keys, compute, what="test")
    assert [row["x"].item() for row in rows] == [2.0, 1.0, 2.0] and computed == [1, 2]
    (message,) = caplog.messages
    assert "the cache" in message and "cannot be written to" in message and message.endswith("going on without")
