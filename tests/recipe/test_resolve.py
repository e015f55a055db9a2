"""A plan says before training what training then does."""

import importlib
from dataclasses import replace

import pytest
import torch

import dpdmd
from dpdmd.method.paths import VPPath
from dpdmd.method.terms.adversarial import Adversarial
from dpdmd.recipe.resolve import resolve


def test_embedded_guidance_is_refused_by_a_network_that_takes_none(adapter, make_recipe):
    for section, key in (("model", "embedded_guidance"), ("train", "fake_embedded_guidance")):
        with pytest.raises(ValueError, match=rf"{section}\.{key} is set to 2\.0, but the network of tiny takes no"):
            resolve(make_recipe(**{section: {key: 2.0}}), adapter)


def test_roles_inherit_the_teachers_embedded_guidance_unless_they_have_their_own(adapter, make_recipe):
    adapter.embedded_guidance = 3.5
    assert set(resolve(make_recipe(), adapter).embedded_guidance.values()) == {3.5}
    plan = resolve(make_recipe(model={"embedded_guidance": 5.0}, student={"embedded_guidance": 1.0}), adapter)
    assert plan.embedded_guidance == {"teacher": 5.0, "student": 1.0, "fake_score": 5.0}


def test_an_unguided_teacher_is_noted(adapter, make_recipe):
    assert not any("not guided" in note for note in resolve(make_recipe(), adapter).notes)
    unguided = make_recipe(model={"guidance_scale": 1.0})
    assert any("not guided" in note for note in resolve(unguided, adapter).notes)
    adapter.embedded_guidance = 3.5
    assert not any("not guided" in note for note in resolve(unguided, adapter).notes)


def test_the_student_may_have_a_shift_of_its_own(adapter, make_recipe):
    recipe = make_recipe(student={"num_steps": 4, "shift": 1.0})
    assert resolve(recipe, adapter).student.grid.times == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_a_shift_is_refused_where_it_means_nothing(adapter, make_recipe):
    with pytest.raises(ValueError, match=r'student\.shift is for the grid "uniform" of a flow, got grid "stock"'):
        resolve(make_recipe(student={"shift": 1.0, "grid": "stock"}), adapter)
    adapter.path = VPPath(torch.linspace(0.99, 0.01, 10))
    with pytest.raises(ValueError, match=r"student\.shift is for the grid"):
        resolve(make_recipe(student={"shift": 1.0}), adapter)


OWN = """
from dataclasses import dataclass
from typing import ClassVar

import dpdmd


@dataclass(frozen=True, kw_only=True)
class Small(dpdmd.Term):
    name: ClassVar[str] = "small"

    def __call__(self, step):
        return dpdmd.TermResult(step.rollout.x0.square().mean())


def small(setting):
    return dpdmd.Objective(terms=(Small(weight=0.5),))


def nothing(setting):
    return None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_terms.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("own_terms")


def test_an_objective_of_ones_own_is_named_by_the_recipe_or_given_and_recorded_alike(adapter, make_recipe, own_module):
    named = resolve(make_recipe(objective={"name": "own_terms:small"}), adapter)
    given = resolve(make_recipe(), adapter, objective=own_module.small)
    for plan in (named, given):
        assert [(term.name, term.weight) for term in plan.objective.terms] == [("small", 0.5)]
        assert plan.objective_name == plan.settings["objective.name"] == "own_terms:small"
        assert 'name = "own_terms:small"' in plan.recipe_toml and plan.anchor_steps is None


def test_an_objective_that_could_not_be_trained_is_refused(adapter, make_recipe):
    anchor, adversarial, second = (
        lambda setting: replace(dpdmd.dp_dmd(setting), detach_first=False),
        lambda setting: dpdmd.Objective((*dpdmd.dmd(setting).terms, Adversarial(tau_low=0.02, tau_high=0.98))),
        lambda setting: dpdmd.Objective(tuple(replace(term, every=2) for term in dpdmd.dmd(setting).terms)),
    )
    for objective, message in (
        (anchor, "'anchor' trains step 1 and needs an objective with detach_first"),
        (adversarial, "'adversarial' needs an objective with a discriminator"),
        (second, "at least one term needs every = 1"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(make_recipe(), adapter, objective=objective)


def test_a_function_that_returns_no_objective_is_refused(adapter, make_recipe, own_module):
    with pytest.raises(ValueError, match="'own_terms:nothing' must return an Objective, got None"):
        resolve(make_recipe(), adapter, objective=own_module.nothing)
