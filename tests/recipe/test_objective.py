import pytest
import torch

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.terms.perceptual import Pictures
from dpdmd.recipe.objective import AnchorConfig, ObjectiveConfig, anchor_stops, build_objective

STUDENT_GRID, TEACHER_GRID = uniform_grid(4, shift=3), uniform_grid(30, shift=3)


def build(student_grid=STUDENT_GRID, **settings):
    return build_objective(
        ObjectiveConfig(**settings), guidance_scale=3.5, student_grid=student_grid, teacher_grid=TEACHER_GRID
    )


def test_dmd_is_one_term_through_every_step():
    objective = build(name="dmd")
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0)]
    assert objective.detach_after == 0


def test_dp_dmd_is_dmd_behind_step_one_and_the_anchor_with_the_weight_of_the_paper():
    objective = build(name="dp_dmd")
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0), ("anchor", 0.05)]
    assert objective.detach_after == 1


def test_dmd_adversarial_is_dmd_and_the_discriminators_term_through_every_step():
    settings = {"tau_low": 0.1, "tau_high": 0.7, "tau_shift": 3.0}
    adversarial = {"weight": 0.2, "loss": "hinge", "start": 3, "ramp": 2}
    objective = build(name="dmd_adversarial", **settings, adversarial=adversarial)
    assert objective.detach_after == 0
    dmd, term = objective.terms
    assert dmd == build(name="dmd", **settings).terms[0]
    assert (term.name, term.weight, term.kind) == ("adversarial", 0.2, "hinge")
    assert (term.tau_low, term.tau_high) == (0.1, 0.7)
    weights = [dict((t.name, w) for w, t in objective.weighted(step)) for step in range(6)]
    assert [row["dmd"] for row in weights] == [1.0] * 6
    assert [row.get("adversarial") for row in weights] == [None, None, None, 0.1, 0.2, 0.2]
    assert build(name="dmd_adversarial").weighted(0)[1][0] == 0.005


def test_both_terms_are_guided_like_the_teacher_unless_told_otherwise():
    dmd, anchor = build().terms
    assert dmd.guidance == anchor.guidance == Guidance(3.5)
    dmd, anchor = build(guidance_interval=(0.3, 0.9), anchor={"guidance_scale": 1.0}).terms
    assert dmd.guidance == Guidance(3.5, (0.3, 0.9)) and anchor.guidance == Guidance(1.0)


def test_settings_reach_the_terms():
    settings = {"normalisation": "dmd2", "tau_low": 0.1, "tau_high": 0.7, "tau_shift": 3.0}
    dmd, anchor = build(**settings, anchor={"weight": 0.2, "steps": 5, "target": "x0"}).terms
    assert {name: getattr(dmd, name) for name in settings} == settings
    assert (anchor.weight, anchor.stops, anchor.target) == (0.2, (5,), "x0")
    anchor = build(anchor={"depth": 2, "coarse_steps": 3, "second_order": True}).terms[1]
    assert (anchor.stops, anchor.coarse_steps, anchor.second_order) == ((7, 15), 3, True)
    assert build().terms[1].target == "secant"


@pytest.mark.parametrize(
    ("anchor", "num_steps"),
    [
        ({}, 7),  # t = .9079, where step 1 of the student lands (.9)
        ({"steps": 12}, 12),
        ({"time": 0.5}, 22),  # u = .25 is 22.5 steps: .5143 after 22, .5 - .0200 after 23
        ({"time": 0.999}, 1),
        ({"time": 0.001}, 29),
    ],
)
def test_the_anchor_is_named_by_steps_by_time_or_by_where_step_one_lands(anchor, num_steps):
    assert anchor_stops(AnchorConfig(**anchor), STUDENT_GRID, TEACHER_GRID) == (num_steps,)


@pytest.mark.parametrize(("depth", "stops"), [(1, (7,)), (2, (7, 15)), (3, (7, 15, 22))])
def test_deeper_anchors_lie_where_the_students_steps_land_and_cut_them_from_dmd(depth, stops):
    # Where the grid of 4 lands: .9, .75, .5; the nearest times of the teacher's grid of 30 are .9079, .75 and .5217.
    objective = build(anchor={"depth": depth})
    assert objective.terms[1].stops == stops and objective.detach_after == depth


def test_anchors_that_the_teachers_grid_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"must leave DMD a step: below student\.num_steps 4, got 4"):
        build(anchor={"depth": 4})
    with pytest.raises(ValueError, match=r"anchor\.steps and anchor\.time are for anchor\.depth 1"):
        build(anchor={"depth": 2, "steps": 5})
    with pytest.raises(ValueError, match=r"teacher's 3 steps are too few for anchor.depth 3: its steps 1, 1, 2"):
        build_objective(
            ObjectiveConfig(anchor={"depth": 3}),
            guidance_scale=3.5,
            student_grid=STUDENT_GRID,
            teacher_grid=uniform_grid(3, shift=3),
        )


@pytest.mark.parametrize("num_steps", [30, 31])
def test_an_anchor_of_all_teacher_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"anchor.steps must be below the teacher's 30 steps, got {num_steps}"):
        build(anchor={"steps": num_steps})


def test_dp_dmd_of_one_step_is_refused_and_dmd_is_not():
    with pytest.raises(ValueError, match=r"dp_dmd needs student\.num_steps >= 2"):
        build(Grid((1.0, 0.0)))
    assert build(Grid((1.0, 0.0)), name="dmd").detach_after == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dpdmd"}, "dp_dmd"),
        ({"tau_lo": 0.1}, "Extra inputs are not permitted"),
        ({"anchor": {"lambda": 0.1}}, "Extra inputs are not permitted"),
        ({"anchor": {"steps": 3, "time": 0.9}}, "anchor.steps or anchor.time, not both"),
        ({"anchor": {"steps": 0}}, "greater than or equal to 1"),
        ({"anchor": {"guidance_scale": 0.5}}, "greater than or equal to 1"),
        ({"adversarial": {"blocks": []}}, "at least 1 item"),
        ({"adversarial": {"blocks": [-1]}}, "greater than or equal to 0"),
        ({"adversarial": {"blocks": [2, 1, 2]}}, r"adversarial\.blocks must name each block once, got \[2, 1, 2\]"),
        ({"adversarial": {"features": "student"}}, "'fake_score' or 'teacher'"),
        ({"adversarial": {"loss": "wasserstein"}}, "'non_saturating' or 'hinge'"),
        ({"adversarial": {"r1_weight": -1}}, "greater than or equal to 0"),
        ({"adversarial": {"weight": 0}}, "greater than 0"),
        ({"tau_low": 0.5, "tau_high": 0.5}, "tau_low must be below tau_high"),
        ({"guidance_interval": (0.9, 0.3)}, "guidance_interval must be"),
        ({"guidance_interval": (0.3, 1.2)}, "guidance_interval must be"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)


def test_the_summed_loss_routes_dmd_behind_step_one_and_the_anchor_to_step_one(
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
            detach_after=objective.detach_after,
        )
        sum(term.weight * term(step).loss for term in objective.terms if term.name in select).backward()
        assert not any(teacher.steps_with_gradient() + fake.steps_with_gradient())
        return torch.stack([student.weight.grad, student.bias.grad, student.gain.grad])

    both, dmd, anchor = gradients({"dmd", "anchor"}), gradients({"dmd"}), gradients({"anchor"})
    assert (dmd[:, 0] == 0).all() and (dmd[:, 1:] != 0).all()
    assert (anchor[:, 0] != 0).all() and (anchor[:, 1:] == 0).all()
    assert torch.equal(both, dmd + anchor)


def test_student_and_teacher_must_start_at_the_same_noise():
    with pytest.raises(ValueError, match="start at the same noise"):
        build_objective(
            ObjectiveConfig(name="dp_dmd"),
            guidance_scale=2.0,
            student_grid=Grid((0.9, 0.5, 0.0)),
            teacher_grid=Grid((1.0, 0.5, 0.0)),
        )


def build_perceptual(student_grid=STUDENT_GRID, **settings):
    config = ObjectiveConfig(name="dmd_perceptual", perceptual=settings)
    pictures = Pictures(lambda latents: latents, size=(32, 32))
    return build_objective(
        config, guidance_scale=3.5, student_grid=student_grid, teacher_grid=TEACHER_GRID, pictures=pictures
    )


def test_dmd_perceptual_is_two_terms_through_every_step_guided_as_the_teacher():
    objective = build_perceptual(weight=0.7)
    dmd, perceptual = objective.terms
    assert objective.detach_after == 0
    assert [(term.name, term.weight) for term in objective.terms] == [("dmd", 1.0), ("perceptual", 0.7)]
    assert dmd.guidance == perceptual.guidance == Guidance(3.5)
    assert (perceptual.num_forwards, build_perceptual(num_pairs=9).terms[1].num_forwards) == (60, 0)


def test_impossible_perceptual_settings_are_refused():
    with pytest.raises(ValueError, match="is neither 'scenes', nor"):
        build_perceptual(backbone="/nowhere")
    with pytest.raises(ValueError, match=r"dmd_perceptual needs student and teacher to start at the same noise"):
        build_perceptual(Grid((0.9, 0.5, 0.0)))
    with pytest.raises(ValueError, match="num_pairs"):
        build_perceptual(num_pairs=0)
