import pytest

from dpdmd.evaluate.words import duration
from dpdmd.report.differences import difference
from dpdmd.report.runs import ArmReport
from dpdmd.report.summary import answers

REFERENCE = [0.4, 0.5, 0.3, 0.45, 0.35, 0.5]


def _arm(label, diversity, accuracy=None, **more):
    accuracy = accuracy or [0.9] * len(diversity)
    rows = [
        {"prompt": f"prompt {i}", "diversity": d, "reference_diversity": r, "named_accuracy": a}
        for i, (d, r, a) in enumerate(zip(diversity, REFERENCE, accuracy, strict=True))
    ]
    metrics = {
        "diversity": sum(diversity) / len(diversity),
        "diversity_share": sum(diversity) / sum(REFERENCE),
        "named_accuracy": sum(accuracy) / len(accuracy),
        "per_prompt": rows,
    }
    return ArmReport(label, metrics=metrics | more)


def summary_sentences(arms):
    return [sentence for group in answers(arms).values() for sentence in group]


def _text(dmd, dp_dmd):
    return " ".join(summary_sentences({"teacher": _arm("Teacher", REFERENCE), "dmd": dmd, "dp_dmd": dp_dmd}))


def test_a_student_that_keeps_more_is_named():
    text = _text(_arm("DMD", [0.7 * r for r in REFERENCE]), _arm("DP-DMD", [0.9 * r for r in REFERENCE]))
    assert "DMD has 70 % and DP-DMD has 90 %" in text
    assert "DP-DMD is more diverse than DMD, by 20.0 percentage points" in text
    assert "have the same score in following the prompt on every prompt" in text


def test_the_outcome_that_nobody_hoped_for_is_reported_as_plainly():
    text = _text(_arm("DMD", [0.9 * r for r in REFERENCE]), _arm("DP-DMD", [0.7 * r for r in REFERENCE]))
    assert "DMD is more diverse than DP-DMD, by 20.0 percentage points" in text
    assert "DP-DMD is more diverse" not in text


def test_a_difference_whose_interval_spans_zero_is_not_settled():
    mixed = [r * (0.7 + (0.05 if i % 2 else -0.05)) for i, r in enumerate(REFERENCE)]
    text = _text(_arm("DMD", [0.7 * r for r in REFERENCE]), _arm("DP-DMD", mixed))
    assert "in diversity is not settled by these prompts" in text and "more diverse" not in text


def test_worse_quality_is_reported():
    dmd = _arm("DMD", [0.2] * 6, [0.95, 0.97, 0.96, 0.95, 0.99, 0.94])
    dp_dmd = _arm("DP-DMD", [0.3] * 6, [0.85, 0.87, 0.85, 0.86, 0.88, 0.84])
    assert "DMD follows the prompt better than DP-DMD, by 10.2 percentage points" in _text(dmd, dp_dmd)


def test_the_difference_is_taken_prompt_by_prompt():
    a, b = _arm("A", [r * 0.8 for r in REFERENCE]), _arm("B", [r * 0.7 for r in REFERENCE])
    gap = difference(a, b, "diversity_share")
    # Exactly .1 on each prompt: pairing leaves no spread at all.
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    rows = [row | {"prompt": "other " + row["prompt"]} for row in b.metrics["per_prompt"]]
    other = ArmReport("B", metrics=b.metrics | {"per_prompt": rows})
    assert difference(a, other, "diversity_share").interval is None
    assert difference(a, ArmReport("empty"), "diversity_share") is None


def test_without_intervals_no_significance_is_claimed():
    arms = {"dmd": ArmReport("DMD", metrics={"diversity_share": 0.7}),
            "dp_dmd": ArmReport("DP-DMD", metrics={"diversity_share": 0.9})}  # fmt: skip
    assert "no interval to say whether that is more than chance" in " ".join(summary_sentences(arms))


def test_no_numbers_no_sentences():
    assert summary_sentences({"dmd": ArmReport("DMD"), "dp_dmd": ArmReport("DP-DMD")}) == []


def test_durations():
    assert [duration(s) for s in (7.46, 59.6, 200, 7500)] == ["7.5 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_overdriven_colours_are_reported_only_where_they_are():
    def text(saturation):
        arms = {"teacher": ArmReport("Teacher", metrics={"saturation": 0.01}),
                "dmd": ArmReport("DMD", metrics={"saturation": saturation})}  # fmt: skip
        return " ".join(summary_sentences(arms))

    assert "15 % of DMD's colour values are at the end of their range (the teacher: 1 %)" in text(0.15)
    assert text(0.02) == ""


def test_scores_of_networks_are_reported_and_compared_prompt_by_prompt():
    def arm(label, scores):
        rows = [{"prompt": str(i), "clip_score": score} for i, score in enumerate(scores)]
        return ArmReport(label, metrics={"clip_score": sum(scores) / len(scores), "per_prompt": rows})

    base = [30.0, 33.0, 28.0, 31.0, 29.0, 32.0]
    teacher = ArmReport("Teacher", metrics={"clip_score": 31.25})
    arms = {"teacher": teacher, "dmd": arm("DMD", [score + 0.5 for score in base]), "dp_dmd": arm("DP-DMD", base)}
    text = " ".join(summary_sentences(arms))
    assert "CLIPScore (higher is better): 31 for DMD and 30.5 for DP-DMD (the teacher: 31.2)" in text
    assert "DMD has a better CLIPScore than DP-DMD, by 0.500 (95 % interval 0.500 to 0.500)" in text


def test_the_worst_tenth_is_reported():
    arms = {"dmd": ArmReport("DMD", metrics={"diversity_share": 0.7, "diversity_share_worst_tenth": 0.12})}
    assert "In the tenth of prompts that keep least diversity, DMD keeps 12 %." in " ".join(summary_sentences(arms))
