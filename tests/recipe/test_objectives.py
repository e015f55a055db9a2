from dataclasses import replace

import pytest
import torch

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.objective import Objective
from dpdmd.method.paths import FlowPath
from dpdmd.method.terms.perceptual import Pictures
from dpdmd.recipe.objective_keys import AnchorConfig, ObjectiveConfig
from dpdmd.recipe.objectives import SHIPPED, ObjectiveSetting, find_objective, name_of, num_anchor_steps

STUDENT_GRID, TEACHER_GRID = uniform_grid(4, shift=3), uniform_grid(30, shift=3)


def setting(student_grid=STUDENT_GRID, teacher_grid=TEACHER_GRID, **keys) -> ObjectiveSetting:
    return ObjectiveSetting(
        keys=ObjectiveConfig(**keys),
        path=FlowPath(),
        prediction_space="velocity",
        student_grid=student_grid,
        teacher_grid=teacher_grid,
        guidance=Guidance(3.5),
        pictures=Pictures(lambda latents: latents, size=(32, 32)),
    )


def build(student_grid=STUDENT_GRID, teacher_grid=TEACHER_GRID, **keys) -> Objective:
    given = setting(student_grid, teacher_grid, **keys)
    return SHIPPED[given.keys.name](given)


def test_dmd_is_one_term_through_every_step():
    objective = build(name="dmd")
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0)]
    assert not objective.detach_first


def test_dp_dmd_is_dmd_after_step_one_and_the_anchor_with_the_weight_of_the_paper():
    objective = build(name="dp_dmd")
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0), ("anchor", 0.05)]
    assert objective.detach_first


def test_dmd_adversarial_is_dmd_and_the_discriminators_term_through_every_step():
    keys = {"tau_low": 0.1, "tau_high": 0.7, "tau_shift": 3.0}
    adversarial = {"weight": 0.2, "features": "teacher", "learning_rate": 0.1, "real": "folder", "num_real": 7}
    objective = build(name="dmd_adversarial", **keys, adversarial=adversarial)
    assert not objective.detach_first
    dmd, term = objective.terms
    assert dmd == build(name="dmd", **keys).terms[0]
    assert (term.name, term.weight, term.tau_low, term.tau_high) == ("adversarial", 0.2, 0.1, 0.7)
    assert vars(objective.discriminator) == {key: value for key, value in adversarial.items() if key != "weight"}
    assert build(name="dmd_adversarial").terms[1].weight == 0.005
    assert build(name="dmd").discriminator is None


def test_both_terms_are_guided_like_the_teacher_by_default():
    dmd, anchor = build().terms
    assert dmd.guidance == anchor.guidance == Guidance(3.5)
    dmd, anchor = build(anchor={"guidance_scale": 1.0}).terms
    assert dmd.guidance == Guidance(3.5) and anchor.guidance == Guidance(1.0)


def test_settings_reach_the_terms():
    settings = {"normalisation": "dmd2", "tau_low": 0.1, "tau_high": 0.7, "tau_shift": 3.0}
    dmd, anchor = build(**settings, anchor={"weight": 0.2, "steps": 5, "target": "x0"}).terms
    assert {name: getattr(dmd, name) for name in settings} == settings
    assert (anchor.weight, anchor.num_steps, anchor.target) == (0.2, 5, "x0")
    anchor = build(anchor={"every": 2, "fraction": 0.5, "coarse_steps": 3, "second_order": False}).terms[1]
    assert (anchor.num_steps, anchor.every, anchor.fraction) == (7, 2, 0.5)
    assert (anchor.coarse_steps, anchor.second_order) == (3, False)
    assert build().terms[1].target == "secant"


def test_the_anchor_is_named_by_steps_or_by_where_step_one_lands():
    # Step 1 of the student lands at t = .9; after 7 steps the teacher is at .9079.
    assert num_anchor_steps(AnchorConfig(), STUDENT_GRID, TEACHER_GRID) == 7
    assert num_anchor_steps(AnchorConfig(steps=12), STUDENT_GRID, TEACHER_GRID) == 12


@pytest.mark.parametrize("num_steps", [30, 31])
def test_an_anchor_of_all_teacher_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"anchor.steps must be below the teacher's 30 steps, got {num_steps}"):
        build(anchor={"steps": num_steps})


def test_dp_dmd_of_one_step_is_refused_and_dmd_is_not():
    with pytest.raises(ValueError, match=r"dp_dmd needs student\.num_steps >= 2"):
        build(Grid((1.0, 0.0)))
    assert not build(Grid((1.0, 0.0)), name="dmd").detach_first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dpdmd"}, "dp_dmd"),
        ({"tau_lo": 0.1}, "Extra inputs are not permitted"),
        ({"anchor": {"lambda": 0.1}}, "Extra inputs are not permitted"),
        ({"anchor": {"steps": 0}}, "greater than or equal to 1"),
        ({"anchor": {"guidance_scale": 0.5}}, "greater than or equal to 1"),
        ({"adversarial": {"features": "student"}}, "'fake_score' or 'teacher'"),
        ({"adversarial": {"weight": 0}}, "greater than 0"),
        ({"tau_low": 0.5, "tau_high": 0.5}, "tau_low must be below tau_high"),
        ({"name": "my module:f"}, "MODULE:FUNCTION"),
        ({"name": "my_module:"}, "MODULE:FUNCTION"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)


def test_the_summed_loss_routes_dmd_after_step_one_and_the_anchor_to_step_one(
    stepwise_network, prompts, randn, student_step
):
    objective = build(anchor={"weight": 0.5})

    def gradients(select):
        student, teacher, fake = (stepwise_network(STUDENT_GRID.times, seed) for seed in range(3))
        step = student_step(
            student,
            teacher,
            fake,
            noise=randn(0, 4, 1, 3, 3),
            cond=prompts([1.0, -1.0, 2.0, 0.5]),
            uncond=prompts([0.0] * 4),
            student_grid=STUDENT_GRID,
            teacher_grid=TEACHER_GRID,
            detach_first=objective.detach_first,
        )
        sum(term.weight * term(step).loss for term in objective.terms if term.name in select).backward()
        assert not any(teacher.steps_with_gradient() + fake.steps_with_gradient())
        return torch.stack([student.weight.grad, student.bias.grad, student.gain.grad])

    both, dmd, anchor = gradients({"dmd", "anchor"}), gradients({"dmd"}), gradients({"anchor"})
    assert (dmd[:, 0] == 0).all() and (dmd[:, 1:] != 0).all()
    assert (anchor[:, 0] != 0).all() and (anchor[:, 1:] == 0).all()
    assert torch.equal(both, dmd + anchor)


@pytest.mark.parametrize("name", ["dp_dmd", "dmd_perceptual"])
def test_student_and_teacher_must_start_at_the_same_noise(name):
    with pytest.raises(ValueError, match=f"{name} needs student and teacher to start at the same noise"):
        build(Grid((0.9, 0.5, 0.0)), Grid((1.0, 0.5, 0.0)), name=name)


def build_perceptual(**keys) -> Objective:
    return build(name="dmd_perceptual", perceptual=keys)


def test_dmd_perceptual_is_two_terms_through_every_step_guided_as_the_teacher():
    objective = build_perceptual(weight=0.7)
    dmd, perceptual = objective.terms
    assert not objective.detach_first and objective.num_pairs is None
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0), ("perceptual", 0.7)]
    assert dmd.guidance == perceptual.guidance == Guidance(3.5)
    assert (perceptual.num_forwards, build_perceptual(num_pairs=9).terms[1].num_forwards) == (60, 0)
    assert build_perceptual(num_pairs=9).num_pairs == 9


def test_impossible_perceptual_settings_are_refused():
    with pytest.raises(ValueError, match="is neither 'scenes', nor"):
        build_perceptual(backbone="/nowhere")
    with pytest.raises(ValueError, match="num_pairs"):
        build_perceptual(num_pairs=0)


OWN = """
from dataclasses import replace
from dpdmd import dp_dmd

def heavier(setting):
    objective = dp_dmd(setting)
    return replace(objective, terms=tuple(replace(term, weight=7.0) for term in objective.terms))

number = 3
"""


def test_an_objective_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_objectives.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    function = find_objective("own_objectives:heavier")
    assert [term.weight for term in function(setting()).terms] == [7.0, 7.0]
    assert name_of(function) == "own_objectives:heavier"
    for name, message in {
        "own_objectives:lighter": "the module own_objectives has no function lighter",
        "own_objectives:number": "the module own_objectives has no function number",
        "nowhere_at_all:f": "cannot import nowhere_at_all .*PYTHONPATH",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_objective(name)


def test_shipped_objectives_are_found_by_their_names():
    assert {name: find_objective(name) for name in SHIPPED} == SHIPPED
    assert replace(setting(), samples_per_prompt=2).samples_per_prompt == 2
