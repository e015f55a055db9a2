"""The verdict: how it went, in one sentence of plain words, and what that sentence does not settle."""

from dataclasses import dataclass
from typing import Any

from dpdmd.evaluate.metrics import metric_of
from dpdmd.evaluate.words import joined, percent, signed, times, writer, written
from dpdmd.report.commands import score_command
from dpdmd.report.differences import by_seed, difference
from dpdmd.report.leads import ENOUGH, Leads
from dpdmd.report.runs import ArmReport, is_number
from dpdmd.report.summary import SCORES, overdriven, unreliable_frechet

# What may stand for quality, the best first: exact scores, people's taste as predicted, nearness to the teacher.
QUALITY = ("validity", *SCORES, "precision")
OF_PICTURES = {"validity": "are clean", "precision": "are close to one of the teacher's"}


@dataclass(frozen=True)
class Verdict:
    """sentence: how it went. remarks: what the sentence leaves open, each a sentence."""

    sentence: str
    remarks: list[str]


def verdict(arms: dict[str, ArmReport], leads: Leads) -> Verdict:
    """The verdict on the student that `leads` names; it says so where nothing was measured."""
    if leads.student is None:
        return Verdict("This page shows a teacher; there is no student to judge.", [])
    student = arms[leads.student]
    rival, teacher = (arms[name] if name else None for name in (leads.rival, leads.teacher))
    has_diversity = diversity_of(student, teacher) is not None
    if not has_diversity and quality_key(student) is None:
        return _without_scores(student, teacher)
    clauses = [
        clause
        for clause in (
            _diversity(student, rival, teacher) if has_diversity else None,
            _quality(student, rival, teacher),
            _nearness(student, rival),
            _speed(student, teacher),
        )
        if clause
    ]
    texts = [clauses[0].replace("{who}", student.name).replace("{whose}", f"{student.name}'s")]
    texts += [clause.replace("{who}", "it").replace("{whose}", "its") for clause in clauses[1:]]
    text = f"{', '.join(texts[:-1])}, and {texts[-1]}" if len(texts) > 2 else " and ".join(texts)
    remarks = [_unmeasured(student, teacher), _open(student), _beyond(student)]
    keys = ["diversity_share"] if has_diversity else []
    remarks += [_unsettled(student, rival, key) for key in (*keys, quality_key(student)) if rival and key]
    return Verdict(f"{text}.", [remark for remark in remarks if remark])


def diversity_of(arm: ArmReport, teacher: ArmReport | None) -> float | None:
    """The share of the teacher's diversity that an arm keeps; None where it is unknown or not to be relied on."""
    share = arm.metrics.get("diversity_share")
    return share if is_number(share) and not overdriven(arm, teacher) else None


def quality_key(arm: ArmReport) -> str | None:
    """The metric that stands for an arm's quality; None where it has none."""
    return next((key for key in QUALITY if is_number(arm.metrics.get(key))), None)


def interval_of(arm: ArmReport, key: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric of an arm; None where it has none."""
    bounds = (arm.metrics.get("intervals") or {}).get(key)
    if not bounds or not all(map(is_number, bounds)):
        return None
    return bounds[0], bounds[1]


def speedup_of(arm: ArmReport) -> float | None:
    """How much faster than its teacher an arm draws; None unless several draws were timed."""
    found = arm.metrics.get("speedup")
    return found if is_number(found) and interval_of(arm, "speedup") else None


def _diversity(student: ArmReport, rival: ArmReport | None, teacher: ArmReport | None) -> str:
    share = student.metrics["diversity_share"]
    low, high = interval_of(student, "diversity_share") or (share, share)
    of_rival = rival and diversity_of(rival, teacher)
    aside = f"; {rival.name}: {percent(of_rival)}" if rival and of_rival is not None else ""
    if low > 1:
        return f"{{who}} varies more than its teacher ({percent(share)} of its diversity{aside})"
    if high >= 1 and low >= ENOUGH:
        return f"{{who}} keeps all of the teacher's diversity ({percent(share)}{aside})"
    return f"{{who}} keeps {percent(share)} of the teacher's diversity" + (f" ({aside[2:]})" if aside else "")


def _quality(student: ArmReport, rival: ArmReport | None, teacher: ArmReport | None) -> str | None:
    key = quality_key(student)
    if key is None:
        return None
    metric = metric_of(key)
    others = [(arm.name, arm.metrics.get(key)) for arm in (None if key in OF_PICTURES else teacher, rival) if arm]
    asides = [f"{label}: {written(value, metric.style)}" for label, value in others if is_number(value)]
    aside = f" ({'; '.join(asides)})" if asides else ""
    own = written(student.metrics[key], metric.style)
    if key in OF_PICTURES:
        return f"{own} of {{whose}} pictures {OF_PICTURES[key]}{aside}"
    return f"{{whose}} {metric.heading} is {own}{aside}"


def _nearness(student: ArmReport, rival: ArmReport | None) -> str | None:
    """How far pictures are from the teacher's: a student may vary as much as its teacher, and draw other things."""
    if rival is None or unreliable_frechet(student) or unreliable_frechet(rival):
        return None
    own, other = (arm.metrics.get("frechet") for arm in (student, rival))
    if not is_number(own) or not is_number(other):
        return None
    metric = metric_of("frechet")
    write = writer(metric.style, [own, other])
    return f"{{whose}} {metric.heading} to the teacher's pictures is {write(own)} ({rival.name}: {write(other)})"


def _speed(student: ArmReport, teacher: ArmReport | None) -> str | None:
    speedup = speedup_of(student)
    if speedup is not None:
        return f"{{who}} draws in {times(speedup)} of the time"
    steps = [arm.metrics.get("num_inference_steps") or (arm.images and arm.images.info.get("num_inference_steps"))
             for arm in (student, teacher) if arm]  # fmt: skip
    if not steps or not is_number(steps[0]):
        return None
    instead = f" instead of {steps[1]}" if len(steps) > 1 and is_number(steps[1]) else ""
    return f"{{who}} takes {steps[0]} steps{instead}"


def _unmeasured(student: ArmReport, teacher: ArmReport | None) -> str | None:
    """Why the sentence has no diversity."""
    if diversity_of(student, teacher) is not None:
        return None
    if overdriven(student, teacher):
        return "Its diversity is not judged: its colours are overdriven, which alone raises what is measured."
    skipped = student.metrics.get("skipped")
    why = skipped.get("feature metrics") if isinstance(skipped, dict) else None
    return f"How diverse its pictures are was not measured{f': {why}' if why else ''}."


def _open(student: ArmReport) -> str | None:
    found = interval_of(student, "diversity_share")
    if found is None or not (found[0] < ENOUGH and found[1] >= 1):
        return None
    low, high = (round(100 * bound) for bound in found)
    return f"How much diversity it keeps is not settled by {_these(student)}: the 95 % interval is {low} to {high} %."


def _beyond(student: ArmReport) -> str | None:
    found = interval_of(student, "diversity_share")
    if found is None or found[0] <= 1:
        return None
    return "More than 100 % is not better: a student should vary as its teacher does."


def _unsettled(student: ArmReport, rival: ArmReport, key: str) -> str | None:
    """What the interval of the difference to the rival leaves open; None where it excludes zero."""
    gap = difference(student, rival, key)
    if gap is None or (gap.value == 0 and gap.interval in (None, [0, 0])):
        return None
    metric = metric_of(key)
    what = f"Whether {student.name} or {rival.name} is ahead in {metric.heading}"
    if gap.low is None or gap.high is None:
        return f"{what} is open: there is no interval to tell more than chance."
    if not gap.low <= 0 <= gap.high:
        return None
    is_share = metric.style == "percent"
    scale, digits, unit = (100, 1, " percentage points") if is_share else (1, 3, "")
    value, low, high = (signed(scale * number, digits) for number in (gap.value, gap.low, gap.high))
    these = f"these {gap.n} training seeds" if by_seed(student, rival, key) else "these prompts"
    return f"{what} is not settled by {these}: {value}{unit}, 95 % interval {low} to {high}."


def _these(arm: ArmReport) -> str:
    values = (arm.metrics.get("values") or {}).get("diversity_share", [])
    return f"these {len(values)} training seeds" if len(values) > 1 else "these prompts"


def _without_scores(student: ArmReport, teacher: ArmReport | None) -> Verdict:
    """A verdict from the validation of a training that nobody has scored, or that there is none."""
    command = score_command(student, teacher)
    how = [f"To score it: {command}"] if command else []
    seen = [(row["step"], found) for row in student.log if (found := _validated(student, row))]
    if not seen and "num_prompts" in student.metrics:
        return Verdict(f"Of {student.name} neither the diversity kept nor the quality was measured.", how)
    if not seen:
        return Verdict(f"{student.name} has not been scored yet.", how)
    step, found = seen[-1]
    parts = [f"kept {percent(found['diversity_share'])} of the teacher's diversity"]
    if is_number(found.get("quality")):
        parts.append(f"had a quality of {percent(found['quality'])}")
    sentence = f"In its last validation, after {step:,} updates, {student.name} {joined(parts)}."
    return Verdict(sentence, ["Validation looks at few pictures, drawn while it trained.", *how])


def _validated(arm: ArmReport, row: dict[str, Any]) -> dict[str, Any]:
    """What a line of the log says of a validation, at the arm's own size if it has several; {} if it says nothing."""
    size = arm.metrics.get("image_size")
    for start in (f"validation/{size}/", "validation/"):
        if is_number(row.get(f"{start}diversity_share")):
            return {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}
    return {}
