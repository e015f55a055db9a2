"""Two processes train what one does: the same draws, the mean of their gradients, one checkpoint."""

import json

import pytest
import torch
from processes import in_two_processes
from tiny_adapter import TinyAdapter

from dpdmd.files import read_tensors
from dpdmd.train.config import Recipe
from dpdmd.train.loop import train

pytestmark = pytest.mark.slow

LORA = {"roles": ["student", "fake_score"], "rank": 2}


def train_tiny(recipe: Recipe, resume: bool = False) -> None:
    train(recipe, TinyAdapter(), resume=resume, progress=False)


def last_weights(recipe: Recipe):
    folder = recipe.output.folder + f"/checkpoints/step-{recipe.train.num_updates:06d}"
    names = ("student", "fake_score", "ema", "student_optimizer", "fake_score_optimizer")
    return {f"{name}/{key}": t for name in names for key, t in read_tensors(f"{folder}/{name}.safetensors").items()}


def rows(recipe: Recipe) -> list[dict]:
    with open(recipe.output.folder + "/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def assert_trained_alike(a: Recipe, b: Recipe) -> None:
    first, second = last_weights(a), last_weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], atol=2e-5, rtol=1e-4), name


@pytest.fixture
def recipe(make_recipe):
    """recipe(folder, processes, ...): eight samples per update, however many processes share them."""

    def make(folder: str, processes: int, *, num_updates: int = 4, shard: bool = False, **sections) -> Recipe:
        options = {"batch_size": 2, "accumulation": 4 // processes, "num_updates": num_updates, "ema_decay": 0.5}
        options["shard"] = shard
        return make_recipe(folder, train=options, **sections)

    return make


@pytest.mark.parametrize(
    ("objective", "kind", "lora"),
    [
        ("dmd", "ode", {}),
        ("dp_dmd", "ode", {}),
        ("dp_dmd", "renoise", {}),
        ("dp_dmd", "ode", LORA),
        ("dmd", "ode", LORA | {"roles": ["fake_score"]}),
    ],
    ids=["dmd", "dp_dmd", "renoise", "shared", "mixed"],
)
def test_two_processes_train_what_one_does(recipe, objective, kind, lora):
    sections = {"objective": {"name": objective}, "student": {"num_steps": 3, "kind": kind}, "lora": lora}
    one, two = recipe("one", 1, **sections), recipe("two", 2, **sections)
    train_tiny(one)
    in_two_processes(train_tiny, two)
    assert_trained_alike(one, two)
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        for key in mine:
            if not key.startswith(("seconds", "sample/", "health/")):  # not means over samples
                assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("lora", [{}, LORA], ids=["copies", "shared"])
def test_sharded_networks_train_as_whole_ones_do(recipe, lora):
    one, two = recipe("one", 1, lora=lora), recipe("two", 2, lora=lora, shard=True, validation={"every": 2})
    train_tiny(one)
    in_two_processes(train_tiny, two)
    assert_trained_alike(one, two)
    name = "pytorch_lora_weights.safetensors" if lora else "student.safetensors"
    mine, theirs = (read_tensors(f"{r.output.folder}/student/{name}") for r in (one, two))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[key], theirs[key], atol=2e-5) for key in mine)


@pytest.mark.parametrize("shard", [False, True], ids=["copied", "sharded"])
def test_a_run_resumes_on_another_number_of_processes_and_back(recipe, shard):
    whole = recipe("whole", 1)
    train_tiny(whole)
    in_two_processes(train_tiny, recipe("parts", 2, num_updates=2, shard=shard))
    train_tiny(recipe("parts", 1, num_updates=3), True)
    rest = recipe("parts", 2, shard=shard)
    in_two_processes(train_tiny, rest, True)
    assert_trained_alike(whole, rest)
    assert [row["step"] for row in rows(rest)] == [1, 2, 3, 4]


def test_sharding_is_refused_in_one_process(recipe):
    with pytest.raises(ValueError, match="start it by torchrun"):
        train_tiny(recipe("run", 1, shard=True))


def test_resuming_with_other_samples_per_update_is_refused(recipe):
    train_tiny(recipe("run", 1, num_updates=2))
    with pytest.raises(ValueError, match=r"another samples_per_update: 8, now 4; on fewer processes raise"):
        train_tiny(recipe("run", 2), True)
