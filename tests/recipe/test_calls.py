"""Validation by default: how often, and that what it is said to take is what it takes."""

import math

import pytest
from trainers import new_trainer, train

from dpdmd.models.load import planning_adapter
from dpdmd.recipe.calls import (
    DECODING,
    VALIDATION_SHARE,
    calls_per_picture,
    forwards_per_update,
    num_validations,
    validation_interval,
)
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe, shipped_recipes
from dpdmd.store.jsonl import read_rows
from dpdmd.training.run.folder import RunFolder

LONG = {"num_updates": 4000, "batch_size": 32}


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_announced_calls_of_a_validation_are_what_it_takes(
    guidance_scale, ema_decay, monkeypatch, adapter, make_recipe, tmp_path
):
    recipe = make_recipe(
        model={"guidance_scale": guidance_scale},
        train={"ema_decay": ema_decay},
        validation={"every": 2, "num_seeds": 3},
    )
    trainer = new_trainer(recipe, adapter)
    counted, predict = [], adapter.predict
    monkeypatch.setattr(adapter, "predict", lambda net, x, *args: (counted.append(len(x)), predict(net, x, *args))[1])
    once, each = calls_per_picture(trainer.plan)
    assert trainer.plan.validation.num_pictures == 12
    for expected in (once + each, each):
        counted.clear()
        trainer.draw_validation(tmp_path)
        assert sum(counted) == 12 * expected


def test_a_run_is_validated_ten_times_unless_that_takes_more_than_a_twentieth(adapter, make_recipe):
    assert resolve(make_recipe(train=LONG), adapter).validation.every == 400
    plan = resolve(make_recipe(train=LONG | {"num_updates": 100}), adapter)
    forward, backward = forwards_per_update(plan)
    once, each = calls_per_picture(plan)
    update, number = 32 * (forward + 2 * backward), plan.validation.num_pictures
    interval = plan.validation.every
    assert 10 < interval == math.ceil(20 * number * (once + each + 4) / update) < 100
    for count in range(1, 100 // interval + 1):
        assert number * (once + count * each) <= 0.05 * count * interval * update
    assert validation_interval(plan) == interval


@pytest.mark.parametrize("num_updates", [10, 11, 12, 15, 21, 22, 23, 40, 57, 101, 399])
def test_with_the_last_student_a_run_of_any_length_is_within_the_share(num_updates, adapter, make_recipe):
    plan = resolve(make_recipe(train=LONG | {"num_updates": num_updates}), adapter)
    forward, backward = forwards_per_update(plan)
    update, number = 32 * (forward + 2 * backward), plan.validation.num_pictures
    once, each = (calls + DECODING for calls in calls_per_picture(plan))
    looked_at = {step for step in range(1, num_updates + 1) if step % (plan.validation.every or num_updates + 1) == 0}
    looked_at |= {num_updates} if plan.validation.every else set()
    assert num_validations(plan) == len(looked_at) <= 10
    share = number * (once + len(looked_at) * each) / (num_updates * update)
    assert (share if looked_at else 0) <= 0.05 < number * (once + each) / (10 * update)


def test_a_run_that_its_time_ends_is_within_the_share_wherever_it_ends(adapter, make_recipe):
    plan = resolve(make_recipe(train=LONG | {"max_seconds": 60.0}), adapter)
    forward, backward = forwards_per_update(plan)
    update, number, interval = 32 * (forward + 2 * backward), plan.validation.num_pictures, plan.validation.every
    once, each = (calls + DECODING for calls in calls_per_picture(plan))
    for end in range(interval, 3 * interval):
        num_validations = end // interval + (end % interval > 0)
        assert number * (once + num_validations * each) <= 0.05 * end * update


def test_a_run_too_short_for_a_validation_has_none_unless_the_recipe_asks_for_it(adapter, make_recipe):
    assert resolve(make_recipe(), adapter).validation.every == 0
    assert resolve(make_recipe(validation={"every": 3}), adapter).validation.every == 3
    off = resolve(make_recipe(train=LONG, validation={"every": 0}), adapter).validation
    assert off.every == 0 and off.is_chosen


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_validated_within_the_share(name):
    recipe = load_recipe(name)
    if recipe.validation.every == 0:
        pytest.skip("it says that pictures do not fit in its memory")
    plan = resolve(recipe, planning_adapter(recipe.model.teacher))
    forward, backward = forwards_per_update(plan)
    update = plan.data.batch_size * plan.data.accumulation * (forward + 2 * backward)
    once, each = calls_per_picture(plan)
    number, updates = plan.validation.num_pictures, plan.budget.num_updates
    assert plan.validation.every
    assert number * (once + (each + DECODING) * num_validations(plan)) <= VALIDATION_SHARE * updates * update


def test_by_default_a_run_has_pictures_scores_and_a_best_student_and_trains_the_same(adapter, make_recipe):
    sizes = {"num_updates": 60, "batch_size": 32, "ema_decay": 0.9}
    plain = train(make_recipe("plain", train=sizes, validation={"every": 0}), adapter, progress=False)
    looked = RunFolder(train(make_recipe("looked", train=sizes), adapter, progress=False))
    scores = read_rows(looked.scores)
    assert scores and all(0 < row["validation/quality"] != 1 for row in scores)
    assert all("validation/diversity_share" in row for row in scores)
    assert len(list(looked.validation.glob("step-*.png"))) == len(scores) and (looked.best / "best.json").is_file()
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(RunFolder(folder).metrics)]
        for folder in (plain, looked.root)
    ]
    assert without_time[0] == without_time[1]
