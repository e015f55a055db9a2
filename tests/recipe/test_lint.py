"""Warnings about grids, and about keys without effect."""

from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.method.grids import Grid, anchor_steps, uniform_grid
from dpdmd.recipe.lint import lint_grids, lint_objective
from dpdmd.recipe.objective_keys import ObjectiveConfig


def stock_grid(num_steps: int) -> Grid:
    """What diffusers' flow scheduler takes by default for SD3's shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    return Grid(tuple(scheduler.sigmas.tolist()))


def test_lint_names_the_near_empty_last_step_of_the_stock_grid():
    messages = lint_grids(stock_grid(4))
    assert len(messages) == 1
    assert "student step 4 of 4 goes from t = 0.0089 to 0.0000" in messages[0]
    assert "4 calls are worth 3" in messages[0]


def test_lint_names_an_anchor_too_near_and_the_better_one():
    student = Grid((1.0, 0.8577, 0.6022, 0.0))
    messages = lint_grids(student, stock_grid(30), 5)
    assert len(messages) == 1
    assert "the teacher's step 5, t = 0.935" in messages[0] and "lands at t = 0.8577, 2.2 times as far" in messages[0]
    assert "Step 10 is at t = 0.851" in messages[0]


def test_lint_names_an_anchor_too_far():
    messages = lint_grids(Grid((1.0, 0.8577, 0.6022, 0.0)), stock_grid(30), 20)
    assert len(messages) == 1 and "step 20, t" in messages[0] and "0.3 times as far" in messages[0]


def test_lint_is_silent_about_a_grid_where_every_call_counts():
    student, teacher = uniform_grid(4, shift=3), uniform_grid(30, shift=3)
    assert lint_grids(student, teacher, anchor_steps(teacher, student.times[1])) == []


def test_lint_is_silent_about_an_anchor_that_no_other_step_of_a_coarse_teacher_betters():
    assert lint_grids(Grid((1.0, 0.8, 0.6, 0.0)), Grid((1.0, 0.9, 0.5, 0.0)), 1) == []


def test_keys_of_another_objective_are_named():
    given = {"anchor": {"weight": 1.0, "every": 2}, "perceptual": {"weight": 0.3}}
    assert lint_objective(ObjectiveConfig(name="dmd", **given)) == [
        'objective.name = "dmd" does not read objective.anchor.weight, objective.anchor.every; only "dp_dmd" reads '
        "objective.anchor",
        'objective.name = "dmd" does not read objective.perceptual.weight; only "dmd_perceptual" reads '
        "objective.perceptual",
    ]
    (of_dp_dmd,) = lint_objective(ObjectiveConfig(name="dp_dmd", **given))
    assert "does not read objective.perceptual.weight;" in of_dp_dmd


def test_keys_that_are_read_or_left_out_are_not_named():
    assert lint_objective(ObjectiveConfig(name="dp_dmd", anchor={"weight": 1.0})) == []
    assert lint_objective(ObjectiveConfig(name="dmd")) == []
    # An objective of somebody's own may read any of them.
    assert lint_objective(ObjectiveConfig(name="my_module:objective", anchor={"weight": 1.0})) == []
