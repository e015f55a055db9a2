"""Recipes and the adapter for training in a test."""

from pathlib import Path

import pytest
from tiny_adapter import PROMPTS, TinyAdapter

from dpdmd.train.config import Recipe


@pytest.fixture
def adapter() -> TinyAdapter:
    return TinyAdapter()


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# some prompts\n\n" + "\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make_recipe(tmp_path, prompts_file):
    """A recipe of a few fast updates; sections are given as keyword arguments and win over what stands here."""

    def make(folder: str = "run", **sections: dict) -> Recipe:
        data = {
            "model": {"teacher": "tiny"},
            "student": {"num_steps": 3},
            "data": {"prompts": str(prompts_file), "cache": "none"},
            "train": {"num_updates": 4, "batch_size": 4, "fake_updates": 2, "learning_rate": 1e-2},
            "checkpoint": {"every": 2},
            "output": {"folder": str(tmp_path / folder)},
        }
        for name, values in sections.items():
            data[name] = data.get(name, {}) | values
        return Recipe.model_validate(data)

    return make
