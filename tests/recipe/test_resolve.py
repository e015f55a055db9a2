"""A plan says before training what training then does."""

import pytest
import torch

from dpdmd.method.paths import VPPath
from dpdmd.recipe.resolve import make_plan


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
