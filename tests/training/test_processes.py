"""Two processes train what one does: the same draws, the mean of their gradients, one checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from processes import in_processes, train_tiny
from tiny_adapter import TinyAdapter
from trainers import new_trainer

from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_tensors
from dpdmd.training.run.checkpoint import Checkpoint

LORA = {"roles": ["student", "fake_score"], "rank": 2}
ADVERSARIAL = {"name": "dmd_adversarial", "adversarial": {"weight": 0.1, "num_real": 5}}


def last_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    folder = Path(recipe.output.folder, "checkpoints", f"step-{recipe.train.num_updates:06d}")
    checkpoint, tensors = Checkpoint(folder, {}), {}
    trained = ("student", "fake_score", *(["discriminator"] if recipe.objective.name == "dmd_adversarial" else []))
    for name in (*trained, "ema", *(f"{name}_optimizer" for name in trained)):
        values = {key: torch.full(shape, torch.nan) for key, shape in checkpoint.shapes(name).items()}
        checkpoint.load(name, values)
        tensors |= {f"{name}/{key}": value for key, value in values.items()}
    return tensors


def rows(recipe: Recipe) -> list[dict]:
    with open(recipe.output.folder + "/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def assert_trained_alike(a: Recipe, b: Recipe) -> None:
    first, second = last_weights(a), last_weights(b)
    assert first.keys() == second.keys()
    for name in first:
        is_moment = "/exp_avg" in name
        atol = 1e-3 * first[name].abs().max().item() if is_moment else 2e-5
        assert torch.allclose(first[name], second[name], atol=atol, rtol=1e-4), name
    for mine, theirs in zip(rows(a), rows(b), strict=True):
        for role in ("student", "fake_score"):
            assert theirs[f"grad_norm/{role}"] == pytest.approx(mine[f"grad_norm/{role}"], rel=1e-3)


@pytest.fixture
def recipe(make_recipe):
    """recipe(folder, processes, ...): eight samples per update, however many processes share them.

    Gradients are clipped (their norms are .02 and more), so that a norm of a part of them would show.
    """

    def make(
        folder: str,
        processes: int,
        *,
        num_updates: int = 4,
        batch_size: int = 2,
        shard: bool | str = False,
        random_step: bool = False,
        **sections,
    ) -> Recipe:
        options = {"batch_size": batch_size, "accumulation": 8 // (batch_size * processes)}
        options |= {"num_updates": num_updates, "ema_decay": 0.5, "max_grad_norm": 0.01}
        options |= {"shard": shard, "random_step": random_step}
        return make_recipe(folder, train=options, **sections)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "kind", "lora"),
    [
        ("dmd", "ode", {}),
        ("dp_dmd", "ode", {}),
        ("dp_dmd", "renoise", {}),
        ("dp_dmd", "ode", LORA),
        ("dmd", "ode", LORA | {"roles": ["fake_score"]}),
        ("dmd_adversarial", "ode", {}),
        ("dmd_adversarial", "renoise", LORA),
    ],
    ids=["dmd", "dp_dmd", "renoise", "shared", "mixed", "adversarial", "adversarial, renoise, shared"],
)
def test_two_processes_train_what_one_does(recipe, objective, kind, lora):
    sections = {"objective": ADVERSARIAL | {"name": objective}, "student": {"num_steps": 3, "kind": kind}, "lora": lora}
    one, two = recipe("one", 1, **sections), recipe("two", 2, **sections)
    train_tiny(one)
    in_processes(train_tiny, two)
    assert_trained_alike(one, two)
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        for key in mine:
            if not key.startswith(("seconds", "sample/", "health/")):  # not means over samples
                assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "lora", "simulated"),
    [
        ({}, {}, {}),
        ({}, LORA, {}),
        ({}, LORA | {"use_dora": True}, {}),
        (ADVERSARIAL, {}, {}),
        (ADVERSARIAL, LORA, {}),
        ({}, {}, {"random_step": True}),
        ({}, LORA, {"random_step": True, "batch_size": 1}),
        ({}, {}, {"kind": "renoise"}),
        ({}, LORA, {"kind": "renoise", "batch_size": 1}),
    ],
    ids=str,
)
def test_sharded_networks_train_as_whole_ones_do(recipe, objective, lora, simulated):
    """Also where each sample has its own last step, so that processes could make different numbers of calls."""
    sections = {"lora": lora, "objective": objective, "student": {"num_steps": 4}}
    options = dict(simulated)
    if "kind" in options:
        sections["student"] |= {"kind": options.pop("kind")}
    one = recipe("one", 1, **sections, **options)
    two = recipe("two", 2, **sections, **options, shard=True, validation={"every": 2})
    train_tiny(one)
    in_processes(train_tiny, two)
    assert_trained_alike(one, two)
    name = "pytorch_lora_weights.safetensors" if lora else "student.safetensors"
    mine, theirs = (read_tensors(f"{r.output.folder}/student/{name}") for r in (one, two))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[key], theirs[key], atol=2e-5) for key in mine)


def count_one_call_more_in_the_second_process(recipe: Recipe) -> None:
    trainer = new_trainer(recipe, TinyAdapter())
    trainer.iterate()
    if trainer.accelerator.process_index == 1:
        with trainer.roles.use("teacher"):
            pass
    with pytest.raises(RuntimeError, match="different numbers of network calls: "):
        trainer.iterate()


@pytest.mark.slow
def test_processes_that_call_networks_unequally_often_stop(recipe):
    in_processes(count_one_call_more_in_the_second_process, recipe("run", 2))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, LORA], ids=["copies", "shared"])
def test_shares_within_two_machines_and_replicas_across_train_as_one_process_does(recipe, lora):
    one = recipe("one", 1, batch_size=1, num_updates=2, lora=lora)
    four = recipe("four", 4, batch_size=1, num_updates=2, lora=lora, shard="machine")
    train_tiny(one)
    in_processes(train_tiny, four, number=4, on_machine=2)
    assert_trained_alike(one, four)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "last"),
    [
        ((2, False), (1, False), (2, False)),
        ((2, True), (1, False), (2, True)),
        ((2, False), (4, True), (2, True)),
        ((4, "machine"), (1, False), (4, "machine")),
        ((2, True), (4, "machine"), (2, False)),
    ],
    ids=["copied", "sharded", "copied-then-sharded", "machines", "machines-between"],
)
def test_a_run_resumes_on_another_number_of_processes_copied_or_sharded(recipe, first, then, last):
    whole = recipe("whole", 1)
    train_tiny(whole)
    for num_updates, (number, shard) in zip((2, 3, 4), (first, then, last), strict=True):
        # Most checkpoints are written beside training, by the threads of all processes.
        rest = recipe("parts", number, num_updates=num_updates, shard=shard, checkpoint={"every": 1})
        in_processes(train_tiny, rest, num_updates > 2, number=number, on_machine=2 if shard == "machine" else None)
    assert_trained_alike(whole, rest)
    assert [row["step"] for row in rows(rest)] == [1, 2, 3, 4]
    sessions = read_json(Path(rest.output.folder, "provenance.json"))["sessions"]
    assert [session["num_processes"] for session in sessions] == [first[0], then[0], last[0]]
    assert sessions[1]["changed"]["train.num_updates"] == [2, 3]


def test_sharding_is_refused_in_one_process(recipe):
    with pytest.raises(ValueError, match="start the run with torchrun"):
        train_tiny(recipe("run", 1, shard=True))


def refuse_machines(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"needs at least two machines .* got 2 processes of which 2 are on one"):
        train_tiny(recipe)


@pytest.mark.slow
def test_replicas_across_machines_are_refused_on_one(recipe):
    in_processes(refuse_machines, recipe("run", 2, shard="machine"))


def test_resuming_with_other_samples_per_update_is_refused(recipe):
    train_tiny(recipe("run", 1, num_updates=2))
    with pytest.raises(ValueError, match=r"8 samples per update, now 4; on fewer processes raise"):
        train_tiny(recipe("run", 2), True)
