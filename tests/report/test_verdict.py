"""The verdict and the large numbers, in each of their forms."""

import pytest

from dpdmd.report.headline import large_numbers
from dpdmd.report.leads import leads
from dpdmd.report.runs import ArmReport
from dpdmd.report.status import Status
from dpdmd.report.verdict import verdict


def arm(label, **metrics):
    bounds = metrics.pop("intervals", {})
    return ArmReport(label, metrics=metrics | {"intervals": bounds})


def told(**arms):
    return verdict(arms, leads(arms))


TEACHER = arm("Teacher", diversity=0.3, validity=0.96)
DMD = arm("DMD", diversity_share=0.49, validity=0.95)


def student(low=0.96, share=1.03, high=1.1, **more):
    bounds = {"diversity_share": [low, high], "speedup": [13.2, 16.1]}
    return arm("DP-DMD", **{"diversity_share": share, "validity": 0.95, "speedup": 15.2, "intervals": bounds} | more)


def test_with_exact_scores_it_says_diversity_quality_and_speed():
    assert told(teacher=TEACHER, dmd=DMD, dp_dmd=student()).sentence == (
        "DP-DMD keeps all of the teacher's diversity (103 %; DMD: 49 %), 95 % of its pictures are clean (DMD: 95 %), "
        "and it draws in 1/15 of the time."
    )


def test_it_says_how_far_both_students_are_from_the_teacher_where_that_can_be_relied_on():
    near, far = student(frechet=0.19), arm("DMD", diversity_share=0.84, validity=0.95, frechet=1.08)
    found = told(teacher=TEACHER, dmd=far, dp_dmd=near).sentence
    assert "its Frechet distance to the teacher's pictures is 0.19 (DMD: 1.08), and it draws in" in found
    for unreliable in (student(frechet=0.19, frechet_reliable=False), student()):
        assert "Frechet" not in told(teacher=TEACHER, dmd=far, dp_dmd=unreliable).sentence
    assert "Frechet" not in told(teacher=TEACHER, dp_dmd=near).sentence


def test_less_is_called_less_and_more_is_not_praised():
    found = told(teacher=TEACHER, dmd=DMD, dp_dmd=student(0.8, 0.87, 0.93))
    assert found.sentence.startswith("DP-DMD keeps 87 % of the teacher's diversity (DMD: 49 %), ")
    found = told(teacher=TEACHER, dmd=DMD, dp_dmd=student(1.2, 1.34, 1.5))
    assert "DP-DMD varies more than its teacher (134 % of its diversity; DMD: 49 %)" in found.sentence
    assert "More than 100 % is not better: a student should vary as its teacher does." in found.remarks


def test_an_interval_that_reaches_from_far_below_to_above_settles_nothing():
    found = told(teacher=TEACHER, dp_dmd=student(0.6, 0.9, 1.2))
    assert "keeps 90 % of the teacher's diversity," in found.sentence and "all of" not in found.sentence
    assert (
        "How much diversity it keeps is not settled by these prompts: the 95 % interval is 60 to 120 %."
        in found.remarks
    )


def test_a_difference_whose_interval_spans_zero_is_not_settled():
    def scored(label, values):
        rows = [{"prompt": str(i), "validity": value} for i, value in enumerate(values)]
        return arm(label, diversity_share=0.9, validity=sum(values) / len(values), per_prompt=rows)

    close = told(dmd=scored("DMD", [0.9, 0.8, 0.7, 0.9]), dp_dmd=scored("DP-DMD", [0.8, 0.9, 0.8, 0.8]))
    (remark,) = (text for text in close.remarks if "clean images" in text)
    assert (
        "Whether DP-DMD or DMD is ahead in clean images is not settled by these prompts: 0.0 percentage points"
        in remark
    )
    apart = told(dmd=scored("DMD", [0.5, 0.4, 0.3, 0.5]), dp_dmd=scored("DP-DMD", [0.8, 0.9, 0.8, 0.8]))
    assert not any("clean images" in text for text in apart.remarks)
    assert "no difference" not in str([close, apart])


def test_models_without_exact_scores_are_judged_by_what_was_measured():
    own = student(validity=None, pick_score=21.4)
    found = told(
        teacher=arm("Teacher", pick_score=21.9), dmd=arm("DMD", diversity_share=0.5, pick_score=21.0), dp_dmd=own
    )
    assert "its PickScore is 21.4 (Teacher: 21.9; DMD: 21.0), and it draws in 1/15" in found.sentence
    found = told(teacher=arm("Teacher"), student=arm("student", diversity_share=0.9, precision=0.88))
    assert found.sentence == (
        "student keeps 90 % of the teacher's diversity and 88 % of its pictures are close to one of the teacher's."
    )


def test_without_a_feature_network_it_says_that_diversity_was_not_measured():
    why = {"feature metrics": "no feature network was named"}
    found = told(teacher=arm("Teacher"), student=arm("student", clip_score=31.2, skipped=why))
    assert found.sentence == "student's CLIPScore is 31.2."
    assert found.remarks == ["How diverse its pictures are was not measured: no feature network was named."]


def test_what_is_not_to_be_relied_on_is_not_in_the_sentence():
    garish = told(teacher=arm("Teacher", saturation=0.01), student=student(saturation=0.2))
    assert "diversity" not in garish.sentence and "its colours are overdriven" in garish.remarks[0]
    rough = told(teacher=arm("Teacher"), student=arm("s", diversity_share=0.9, frechet=3.0, frechet_reliable=False))
    assert "Frechet" not in rough.sentence
    once = arm("s", diversity_share=0.9, speedup=20.0, num_inference_steps=4)
    assert "takes 4 steps instead of 30" in told(teacher=arm("Teacher", num_inference_steps=30), s=once).sentence


def test_a_run_that_nobody_scored_is_told_by_its_validation_and_says_how_to_score_it(tmp_path):
    log = [{"step": 250, "validation/diversity_share": 0.9}]
    log += [{"step": 300, "validation/diversity_share": 0.93, "validation/quality": 0.88}]
    run = ArmReport("my run", folder=tmp_path / "my run", log=log, status=Status(300, 300, True))
    found = told(run=run)
    assert found.sentence == (
        "In its last validation, after 300 updates, my run kept 93 % of the teacher's diversity and had a quality of "
        "88 %."
    )
    assert found.remarks[-1] == f"To score it: dpdmd evaluate '{tmp_path}/my run'"
    assert told(run=ArmReport("x")).sentence == "x has not been scored yet."


def test_a_run_scored_without_diversity_and_quality_is_not_called_unscored():
    run = ArmReport("x", metrics={"num_prompts": 4, "images_per_prompt": 9, "saturation": 0.0})
    assert told(run=run).sentence == "Of x neither the diversity kept nor the quality was measured."


def test_a_size_that_nobody_scored_is_told_by_its_own_validation():
    row = {"step": 30, "validation/diversity_share": 0.96, "validation/quality": 0.65}
    row |= {"validation/24x40/diversity_share": 0.85, "validation/24x40/quality": 0.56}
    of_size = ArmReport("run", log=[row], metrics={"image_size": "24x40"})
    assert (
        "after 30 updates, run kept 85 % of the teacher's diversity and had a quality of 56 %"
        in told(run=of_size).sentence
    )
    of_one = ArmReport("run", log=[row], metrics={"image_size": "32x32"})
    assert "run kept 96 % of the teacher's diversity" in told(run=of_one).sentence


def test_the_three_numbers_have_intervals_and_what_is_better():
    arms = {"teacher": TEACHER, "dmd": DMD, "dp_dmd": student(seconds_per_image=0.1, reference_seconds_per_image=1.52)}
    diversity, quality, speed = large_numbers(arms, leads(arms))
    assert (diversity.text, diversity.interval) == ("103 %", "95 % interval 96 – 110 %")
    assert quality.better == "higher is better" and [other.text for other in quality.others] == ["96 %", "95 %"]
    assert (speed.text, [other.text for other in speed.others]) == ("1/15", ["1.52 s", "0.10 s"])
    arms = {"student": arm("s", clip_score=31.0)}
    assert [number.text for number in large_numbers(arms, leads(arms))] == ["", "31.0", ""]
    assert large_numbers({"student": arm("s")}, leads({"student": arm("s")})) == []


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            Status(120, 300, False),
            "DMD has made 120 of 300 updates and is not finished. To go on: dpdmd train r --resume",
        ),
        (Status(7, 300, False, "loss/dmd = inf"), "DMD failed after 7 of 300 updates: loss/dmd = inf."),
        (Status(300, 300, True), ""),
    ],
)
def test_a_page_says_how_far_a_run_came(status, text):
    assert status.sentence("DMD", "r") == text
