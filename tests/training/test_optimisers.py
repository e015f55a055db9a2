"""train.optimiser: what each optimiser's state takes, and that a resumed one goes on to the bit."""

import weakref
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from trainers import train

from dpdmd.method.randomness import generator
from dpdmd.recipe.optimisers import missing_optimiser, optimiser_bytes
from dpdmd.recipe.plan import OptimiserPlan
from dpdmd.store.tensors import read_tensors
from dpdmd.training import offloaded_adamw
from dpdmd.training.optimisers import load_optimizer, new_optimiser, optimizer_tensors
from dpdmd.training.run.checkpoint import Checkpoint, save_checkpoint

PLAN = OptimiserPlan(
    learning_rate=1e-2,
    fake_learning_rate=1e-2,
    warmup=0,
    schedule="constant",
    num_updates=9,
    weight_decay=0.1,
    betas=(0.9, 0.99),
    max_grad_norm=1.0,
    ema_decay=0.0,
)
NAMES = ["adamw", "adamw_8bit", "adamw_offloaded", "adafactor"]


@pytest.fixture(params=NAMES)
def plan(request):
    if missing_optimiser(request.param) is not None:
        pytest.skip("bitsandbytes is not installed")
    return replace(PLAN, optimiser=request.param)


def new_network() -> nn.Module:
    """A matrix that is quantised, one that is too small for it, biases, and a convolution."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 5), nn.Conv2d(3, 4, 3))


def steps(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], first: int, last: int) -> None:
    for i in range(first, last):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator(i, name))
        optimiser.step()


def test_a_restored_optimiser_goes_on_to_the_bit_in_the_bytes_that_are_planned(plan, tmp_path):
    networks = [new_network() for _ in range(2)]
    whole, parts = (dict(network.named_parameters()) for network in networks)
    optimiser = new_optimiser(list(whole.values()), plan, 1e-2)
    steps(optimiser, whole, 0, 3)
    tensors = optimizer_tensors(optimiser, whole)
    planned = optimiser_bytes((tuple(p.shape) for p in whole.values()), plan.optimiser)
    counted = sum(t.nbytes for name, t in tensors.items() if not name.startswith("step/"))
    assert counted == planned
    if plan.optimiser == "adamw_8bit":
        assert tensors["state1/0.weight"].dtype == torch.uint8 and tensors["state1/1.weight"].dtype == torch.float32
    for parameter, value in zip(parts.values(), whole.values(), strict=True):
        parameter.data.copy_(value.data)
    folder = save_checkpoint(tmp_path, {"optimizer": tensors}, {"step": 3}, keep=1)
    other = new_optimiser(list(parts.values()), plan, 1e-2)
    load_optimizer(other, parts, Checkpoint(folder, {}), "optimizer")
    steps(optimiser, whole, 3, 6)
    steps(other, parts, 3, 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    mine, theirs = optimizer_tensors(optimiser, whole), optimizer_tensors(other, parts)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_8_bit_moments_update_nearly_as_moments_in_fp32_do():
    if missing_optimiser("adamw_8bit") is not None:
        pytest.skip("bitsandbytes is not installed")
    results = []
    for name in ("adamw", "adamw_8bit"):
        parameters = dict(new_network().named_parameters())
        steps(new_optimiser(list(parameters.values()), replace(PLAN, optimiser=name), 1e-3), parameters, 0, 5)
        results.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    begun = torch.cat([p.detach().flatten() for p in new_network().parameters()])
    moved, difference = (results[0] - begun).norm(), (results[1] - results[0]).norm()
    # Codes of 8 bits with a scale per 256 numbers are within about 1 % of what they stand for.
    assert 0 < difference < 0.05 * moved


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_with_every_optimiser(name, make_recipe, adapter):
    if missing_optimiser(name) is not None:
        pytest.skip("bitsandbytes is not installed")
    options = {"optimiser": name, "warmup": 2, "schedule": "linear"}
    whole = train(make_recipe("whole", train=options | {"num_updates": 4}), adapter, progress=False)
    # A schedule falls to zero at the end of a run, so the shorter run is cut by its checkpoint.
    recipe = make_recipe("parts", train=options | {"num_updates": 4}, checkpoint={"every": 2})
    parts = train(recipe, adapter, progress=False)
    (newest,) = (parts / "checkpoints").glob("step-000004")
    (newest / "state.json").unlink()
    train(recipe, adapter, resume=True, progress=False)
    mine, theirs = (read_tensors(run / "student" / "student.safetensors") for run in (whole, parts))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


class Device:
    """Stands for a device: `to` copies as one would, and counts what of it is there at a time."""

    def __init__(self):
        self.now = self.most = self.copies = 0

    def to(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        copy = tensor.clone()
        self.now, self.copies = self.now + copy.nbytes, self.copies + 1
        self.most = max(self.most, self.now)
        weakref.finalize(copy, self._free, copy.nbytes)
        return copy

    def _free(self, size: int) -> None:
        self.now -= size


def test_offloaded_moments_are_on_the_device_one_weight_at_a_time_and_train_to_the_same_bits(monkeypatch):
    device = Device()
    monkeypatch.setattr(offloaded_adamw, "to_device", device.to)
    results = []
    for name in ("adamw", "adamw_offloaded"):
        parameters = dict(new_network().named_parameters())
        optimiser = new_optimiser(list(parameters.values()), replace(PLAN, optimiser=name), 1e-2)
        steps(optimiser, parameters, 0, 4)
        results.append(parameters | optimizer_tensors(optimiser, parameters))
    plain, offloaded = results
    assert plain.keys() == offloaded.keys() and all(torch.equal(plain[key], offloaded[key]) for key in plain)
    largest = max(p.nbytes for p in new_network().parameters())
    assert device.copies == 4 * 2 * len(parameters) and device.now == 0 and device.most == 2 * largest


def test_offloaded_moments_are_in_the_memory_of_the_cpu_wherever_weights_are():
    moment = offloaded_adamw.OffloadedAdamW.blank(torch.empty(3, 5, device="meta"))
    assert moment.device.type == "cpu" and moment.shape == (3, 5)


def test_a_run_with_offloaded_moments_ends_with_the_bits_of_one_without_and_may_go_on_as_one(make_recipe, adapter):
    recipes = {
        name: make_recipe(name, train={"optimiser": name, "num_updates": 2}) for name in ("adamw", "adamw_offloaded")
    }
    runs = [train(recipe, adapter, progress=False) for recipe in recipes.values()]
    more = make_recipe("adamw", train={"optimiser": "adamw_offloaded", "num_updates": 4})
    whole = make_recipe("whole", train={"num_updates": 4})
    students = [read_tensors(run / "student" / "student.safetensors") for run in runs]
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])
    runs = [train(whole, adapter, progress=False), train(more, adapter, resume=True, progress=False)]
    students = [read_tensors(run / "student" / "student.safetensors") for run in runs]
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_offloaded", "adafactor"])
def test_statistics_of_whole_weights_and_shares_of_them_exclude_each_other(name, make_recipe):
    with pytest.raises(ValidationError, match=f'train.optimiser "{name}" and train.shard exclude each other'):
        make_recipe(train={"optimiser": name, "shard": True})


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("dpdmd.recipe.optimisers.find_spec", lambda name: None)
    assert missing_optimiser("adamw") is None and missing_optimiser("adafactor") is None
    assert missing_optimiser("adamw_8bit") == (
        'train.optimiser "adamw_8bit" needs bitsandbytes, which is not installed: pip install "dpdmd[adamw_8bit]"'
    )
