"""A plan says before training what training then does."""

import pytest
import torch

from dpdmd.paths import VPPath
from dpdmd.train.plan import forwards_per_update, make_plan, state_bytes
from dpdmd.train.trainer import Trainer


def counted(monkeypatch, adapter) -> dict[str, int]:
    """How many samples pass through the networks, with and without a graph."""
    calls = {"all": 0, "graph": 0}
    predict = adapter.predict

    def spy(network, x_t, t, cond, embedded_guidance=None):
        result = predict(network, x_t, t, cond, embedded_guidance)
        calls["all"] += len(x_t)
        calls["graph"] += len(x_t) if result.x0.requires_grad else 0
        return result

    monkeypatch.setattr(adapter, "predict", spy)
    return calls


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "objective",
    [{"name": "dmd"}, {"name": "dp_dmd"}, {"name": "dp_dmd", "anchor": {"target": "x0"}}],
    ids=["dmd", "dp_dmd", "dp_dmd, x0"],
)
def test_the_announced_number_of_network_calls_is_what_an_update_takes(
    objective, guidance_scale, monkeypatch, adapter, make_recipe
):
    recipe = make_recipe(objective=objective, model={"guidance_scale": guidance_scale})
    trainer = Trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan, recipe)
    assert calls["all"] == forward * recipe.train.batch_size
    assert calls["graph"] == backward * recipe.train.batch_size


@pytest.mark.parametrize("name", ["dmd", "dp_dmd"])
def test_a_renoising_student_takes_the_announced_number_on_average(name, monkeypatch, adapter, make_recipe):
    recipe = make_recipe(objective={"name": name}, student={"kind": "renoise", "num_steps": 3})
    trainer = Trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    for _ in range(60):
        trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan, recipe)
    assert calls["all"] / 60 / recipe.train.batch_size == pytest.approx(forward, rel=0.05)
    assert calls["graph"] / 60 / recipe.train.batch_size == pytest.approx(backward, rel=0.05)


def test_the_announced_memory_is_that_of_networks_gradients_and_optimisers(adapter, make_recipe):
    recipe = make_recipe(train={"ema_decay": 0.9})
    trainer = Trainer(recipe, adapter)
    trainer.iterate()
    networks = sum(p.nbytes for network in trainer.roles.networks.values() for p in network.parameters())
    moments = sum(
        value.nbytes
        for updater in trainer.updaters.values()
        for state in updater.optimizer.state.values()
        for value in state.values()
        if value.ndim
    )
    announced = state_bytes(recipe, sum(p.numel() for p in adapter.load_network().parameters()))
    assert announced["three networks"] == networks
    assert announced["AdamW moments"] == moments
    assert announced["gradients"] == networks * 2 // 3 and announced["moving average"] == networks // 3


def test_embedded_guidance_is_refused_by_a_network_that_takes_none(adapter, make_recipe):
    for section, key in (("model", "embedded_guidance"), ("train", "fake_embedded_guidance")):
        with pytest.raises(ValueError, match=rf"{section}\.{key} is set to 2\.0, but the network of tiny takes no"):
            make_plan(make_recipe(**{section: {key: 2.0}}), adapter)


def test_roles_inherit_the_teachers_embedded_guidance_unless_they_have_their_own(adapter, make_recipe):
    adapter.embedded_guidance = 3.5
    assert set(make_plan(make_recipe(), adapter).embedded_guidance.values()) == {3.5}
    plan = make_plan(make_recipe(model={"embedded_guidance": 5.0}, student={"embedded_guidance": 1.0}), adapter)
    assert plan.embedded_guidance == {"teacher": 5.0, "student": 1.0, "fake_score": 5.0}


def test_an_unguided_teacher_is_noted(adapter, make_recipe):
    assert not any("not guided" in note for note in make_plan(make_recipe(), adapter).notes)
    unguided = make_recipe(model={"guidance_scale": 1.0})
    assert any("not guided" in note for note in make_plan(unguided, adapter).notes)
    adapter.embedded_guidance = 3.5
    assert not any("not guided" in note for note in make_plan(unguided, adapter).notes)


def test_the_student_may_have_a_shift_of_its_own(adapter, make_recipe):
    recipe = make_recipe(student={"num_steps": 4, "shift": 1.0})
    assert make_plan(recipe, adapter).student_grid.times == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_a_shift_is_refused_where_it_means_nothing(adapter, make_recipe):
    with pytest.raises(ValueError, match=r'student\.shift is for the grid "uniform" of a flow, got grid "stock"'):
        make_plan(make_recipe(student={"shift": 1.0, "grid": "stock"}), adapter)
    adapter.path = VPPath(torch.linspace(0.99, 0.01, 10))
    with pytest.raises(ValueError, match=r"student\.shift is for the grid"):
        make_plan(make_recipe(student={"shift": 1.0}), adapter)
