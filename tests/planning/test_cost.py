"""A plan says before training what training then costs."""

import pytest
from trainers import new_trainer

from dpdmd.method.roles import TRAINED_ROLES
from dpdmd.planning.cost import NetworkSizes, _discriminator, checkpoint_bytes, describe, moved_bytes, state_bytes
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.resolve import resolve


def counted(monkeypatch, adapter) -> dict[str, int]:
    """How many samples pass through the networks, with and without a graph."""
    calls = {"all": 0, "graph": 0}
    predict = adapter.predict

    def spy(network, x_t, t, cond, embedded_guidance=None):
        calls["all"] += len(x_t)  # a call for features may not come back
        result = predict(network, x_t, t, cond, embedded_guidance)
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
    trainer = new_trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    assert calls["all"] == forward * recipe.train.batch_size
    assert calls["graph"] == backward * recipe.train.batch_size


@pytest.mark.parametrize("reuse", [True, False, "student"], ids=["reused", "own", "student"])
@pytest.mark.parametrize("anchor", [{"target": "x0"}, {"coarse_steps": 1}, {"coarse_steps": 9}], ids=str)
def test_anchors_and_their_savings_are_announced(anchor, reuse, monkeypatch, adapter, make_recipe):
    recipe = make_recipe(objective={"anchor": anchor}, train={"reuse_samples": reuse, "accumulation": 2})
    trainer = new_trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    assert calls["all"] == forward * 2 * recipe.train.batch_size
    assert calls["graph"] == backward * 2 * recipe.train.batch_size


@pytest.mark.parametrize("random_step", [False, True])
def test_an_anchor_in_every_third_update_is_announced_and_not_paid_in_the_others(
    random_step, monkeypatch, adapter, make_recipe
):
    objective = {"anchor": {"every": 3}}
    recipe = make_recipe(objective=objective, student={"num_steps": 3}, train={"random_step": random_step})
    trainer = new_trainer(recipe, adapter)
    calls, rows = counted(monkeypatch, adapter), []
    for _ in range(6):
        rows.append(trainer.iterate() | calls)
    forward, backward = forwards_per_update(trainer.plan)
    assert ["loss/anchor" in row for row in rows] == [True, False, False] * 2
    assert calls["all"] == pytest.approx(6 * forward * recipe.train.batch_size)
    assert calls["graph"] == pytest.approx(6 * backward * recipe.train.batch_size)


@pytest.mark.parametrize(("fraction", "batch_size"), [(0.5, 4), (0.25, 2), (0.75, 4)])
@pytest.mark.parametrize("random_step", [False, True])
def test_an_anchor_on_a_fraction_of_the_samples_is_announced_and_not_paid_for_the_others(
    random_step, fraction, batch_size, monkeypatch, adapter, make_recipe
):
    recipe = make_recipe(
        objective={"anchor": {"fraction": fraction}},
        student={"num_steps": 3},
        train={"random_step": random_step, "batch_size": batch_size, "num_updates": 4},
    )
    trainer = new_trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    for _ in range(4):
        trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    assert calls["all"] == pytest.approx(4 * forward * batch_size)
    assert calls["graph"] == pytest.approx(4 * backward * batch_size)


@pytest.mark.parametrize("train", [{"reuse_samples": False}, {"accumulation": 2}], ids=["own", "reused"])
def test_calls_for_a_discriminator_are_announced(train, monkeypatch, adapter, make_recipe):
    adversarial = {"num_real": 5}
    recipe = make_recipe(objective={"name": "dmd_adversarial", "adversarial": adversarial}, train=train)
    trainer = new_trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    trainer.iterate()  # draws the teacher's samples
    first, graph = calls["all"], calls["graph"]
    trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    samples = recipe.train.accumulation * recipe.train.batch_size
    assert calls["all"] - first == forward * samples
    assert calls["graph"] - graph == backward * samples
    # Eight of 5, drawn 4 at a time, in 8 guided steps: what --dry-run says for 5, rounded up to whole batches.
    assert first - forward * samples == 8 * 8 * 2
    assert "real are 5 samples of the teacher, 80 forward network calls once" in _discriminator(trainer.plan)


@pytest.mark.parametrize(
    "settings",
    [{"student": {"kind": "renoise", "num_steps": 3}}, {"student": {"num_steps": 3}, "train": {"random_step": True}}],
    ids=["renoise", "random step"],
)
@pytest.mark.parametrize("name", ["dmd", "dp_dmd"])
def test_a_student_of_random_steps_takes_the_announced_number_on_average(
    name, settings, monkeypatch, adapter, make_recipe
):
    recipe = make_recipe(objective={"name": name}, **settings)
    trainer = new_trainer(recipe, adapter)
    calls = counted(monkeypatch, adapter)
    for _ in range(60):
        trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    assert calls["all"] / 60 / recipe.train.batch_size == pytest.approx(forward, rel=0.05)
    assert calls["graph"] / 60 / recipe.train.batch_size == pytest.approx(backward, rel=0.05)


@pytest.mark.parametrize("roles", [[], ["fake_score"]], ids=["copies", "mixed"])
def test_offloaded_moments_are_in_a_checkpoint_and_not_on_the_device(roles, adapter, make_recipe):
    lora = {"roles": roles, "rank": 3, "targets": ["first", "second"]}
    here, away = (
        resolve(make_recipe(train={"optimiser": name}, lora=lora), adapter) for name in ("adamw", "adamw_offloaded")
    )
    sizes = NetworkSizes(1000, 4000, adapter=100, state=8000, adapter_state=800, largest=600, adapter_largest=60)
    moments = 2 * 8000 - 7200 * len(roles)
    assert sum(state_bytes(here, sizes).values()) - sum(state_bytes(away, sizes).values()) == moments
    assert checkpoint_bytes(here, sizes) == checkpoint_bytes(away, sizes) > moments
    assert (moved_bytes(here, sizes), moved_bytes(away, sizes)) == (0, 8 * 600)
    assert "AdamW moments" in describe(here, adapter) and "in the CPU's" not in describe(here, adapter)
    assert "GiB, in the CPU's" in describe(away, adapter)


@pytest.mark.parametrize("roles", [[], ["fake_score"], ["student", "fake_score"]], ids=["copies", "mixed", "shared"])
def test_the_announced_memory_is_that_of_networks_gradients_and_optimisers(roles, adapter, make_recipe):
    lora = {"roles": roles, "rank": 3, "targets": ["first", "second"]}
    recipe = make_recipe(train={"ema_decay": 0.9}, lora=lora)
    trainer = new_trainer(recipe, adapter)
    trainer.iterate()
    networks = {id(network): network for network in trainer.roles.networks.values()}.values()
    weights = sum(p.nbytes for network in networks for p in network.parameters())
    moments = sum(
        value.nbytes
        for updater in trainer.updaters.values()
        for state in updater.optimizer.state.values()
        for value in state.values()
        if value.ndim
    )
    trained = [sum(p.nbytes for p in trainer.roles.parameters(role).values()) for role in TRAINED_ROLES]
    network = sum(p.numel() for p in adapter.load_network().parameters())
    first, second = (3 * (in_features + out_features) for in_features, out_features in ((73, 32), (32, 64)))
    sizes = NetworkSizes(network, 4 * network, first + second, state=8 * network, adapter_state=8 * (first + second))
    announced = state_bytes(trainer.plan, sizes)
    assert announced["teacher"] + announced["student"] + announced["fake score"] == weights
    assert announced["AdamW moments"] == moments
    assert announced["gradients"] == max(trained)
    assert announced["moving average"] == sum(value.nbytes for value in trainer.ema.average.values())
