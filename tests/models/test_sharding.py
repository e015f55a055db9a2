"""Shares of networks: each process reads and holds its own, gathers what it needs, and trains as one process does."""

from pathlib import Path
from types import EllipsisType

import pytest
import torch
from processes import in_processes

from benchmarks.cycle import merged, save_model
from benchmarks.sharding import PeakMemory, Traffic
from dpdmd.distributed.processes import new_accelerator
from dpdmd.distributed.wrapping import own_part, own_rows
from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import network_sizes
from dpdmd.planning.traffic import Cluster, update_traffic
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.tensors import read_tensors, write_tensors
from dpdmd.training.networks import new_roles
from dpdmd.training.parts import build_parts
from dpdmd.training.trainer import Trainer

pytestmark = pytest.mark.slow
BF16 = {"train": {"precision": "bf16"}}
MIB = 2**20
Rows = slice | EllipsisType


@pytest.fixture
def recipe(tmp_path):
    """recipe(folder, processes, settings, ...): four micro-batches of one sample in an update, whoever draws them."""
    (tmp_path / "prompts.txt").write_text("a red circle\nthe small blue cross on a white background\none cross\n")

    def make(folder: str, processes: int, *settings: dict) -> Recipe:
        train = {"batch_size": 1, "accumulation": 4 // processes, "fake_updates": 1, "learning_rate": 1e-4}
        base = {
            "model": {"teacher": folder, "num_inference_steps": 4},
            "student": {"num_steps": 2},
            "data": {"prompts": str(tmp_path / "prompts.txt"), "cache": str(tmp_path / "cache")},
            "train": train | {"shard": processes > 1},
            "output": {"folder": str(tmp_path / "run")},
        }
        return Recipe.model_validate(merged(base, *settings))

    return make


def trainer_of(recipe: Recipe) -> Trainer:
    adapter = load_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    return Trainer(plan, build_parts(plan, adapter))


def state(trainer: Trainer) -> dict[str, tuple[torch.Tensor, Rows]]:
    """{role/name: (what this process holds, which rows of the whole)} of what is trained, and of the first moments.

    A moment is (1 - beta) times the gradient so far. Nothing is gathered, so that a test has no more collectives than
    training.
    """
    found = {}
    for role, updater in trainer.updaters.items():
        for name, p in updater.named_parameters.items():
            found[f"{role}/weight/{name}"] = own_part(p.detach()).clone(), own_rows(p)
            found[f"{role}/moment/{name}"] = own_part(updater.optimizer.state[p]["exp_avg"]).clone(), own_rows(p)
    return found


def difference(mine: dict[str, tuple[torch.Tensor, Rows]], theirs: dict[str, torch.Tensor], kind: str) -> float:
    """|mine - theirs| / |theirs| over the shares that this process holds of all tensors of a kind."""
    pairs = [(own, theirs[name][rows]) for name, (own, rows) in mine.items() if f"/{kind}/" in name]
    error = sum((own - whole).double().square().sum() for own, whole in pairs)
    return (error / sum(whole.double().square().sum() for _, whole in pairs)).sqrt().item()


def expect_the_same(cases: list[tuple[Recipe, Path, float]], cluster: Cluster) -> None:
    for recipe, expected, tolerance in cases:
        trainer = trainer_of(recipe)
        with Traffic() as traffic:
            trainer.iterate()
        mine, theirs = state(trainer), read_tensors(expected)
        assert mine.keys() == theirs.keys()
        errors = {kind: difference(mine, theirs, kind) for kind in ("moment", "weight")}
        assert errors["moment"] <= tolerance, errors
        # AdamW's first step is the sign of the gradient, which in bf16 is another one where the gradient is nothing.
        assert errors["weight"] <= 1e-6 or recipe.train.precision == "bf16", errors
        calculated = update_traffic(trainer.plan, network_sizes(trainer.plan, trainer.parts.adapter), cluster)
        counted = {kind: sum(n for (name, _), n in traffic.sent.items() if name == kind) for kind, _ in traffic.sent}
        within, across = counted["gathered"] + counted["scattered"], counted.get("reduced", 0)
        # What is outside of blocks, a tenth of this network, is still there when the backward pass begins.
        assert within == pytest.approx(calculated.within, rel=0.05), (within / MIB, calculated.within / MIB)
        if recipe.train.shard == "machine":
            assert across * cluster.gpus == pytest.approx(calculated.across, rel=0.03)


@pytest.mark.parametrize("number", [2, 4], ids=["two", "two machines of two"])
def test_shares_train_as_one_process_and_send_what_is_calculated(number, recipe, tiny_folder, tmp_path):
    """fp32: equal up to the order of sums. bf16: gradients within 2 % of one process under autocast."""
    folder, cases = tiny_folder("sd3"), []
    machines = {"train": {"shard": "machine"}} if number == 4 else {}
    arms = [({}, 1e-5)] if number == 4 else [({}, 1e-5), (BF16, 2e-2)]
    for i, (settings, tolerance) in enumerate(arms):
        trainer = trainer_of(recipe(folder, 1, settings))
        trainer.iterate()
        write_tensors(tmp_path / f"{i}.safetensors", {name: whole for name, (whole, _) in state(trainer).items()})
        cases.append((recipe(folder, number, settings, machines), tmp_path / f"{i}.safetensors", tolerance))
    cluster = Cluster(number // 2, 2, 400.0)
    in_processes(expect_the_same, cases, cluster, number=number, on_machine=2)


def start_in_a_share(recipe: Recipe) -> None:
    adapter, accelerator = load_adapter(recipe.model.teacher), new_accelerator()
    plan = resolve(recipe, adapter)
    with PeakMemory() as memory:
        roles = new_roles(plan, adapter, accelerator)
    network = sum(p.numel() * p.element_size() for p in adapter.blank_network().parameters())
    share = 3 * network / accelerator.num_processes
    block = max(sum(p.numel() for p in block.parameters()) for block in adapter.blank_network().transformer_blocks) * 4
    assert roles.modules["teacher"].pos_embed.proj.weight.to_local().isfinite().all()
    # Modules that are imported, and Python's objects of three networks, take some MiB.
    assert share <= memory.added <= share + block + 24 * MIB, (memory.added / MIB, share / MIB, block / MIB)


def test_a_process_starts_with_its_share_and_at_most_one_block_more(recipe, tmp_path):
    save_model(tmp_path / "model", width=384, num_blocks=6, latent_size=16)
    in_processes(start_in_a_share, recipe(str(tmp_path / "model"), 2))
