"""The three large numbers of the first screen: diversity, quality, speed."""

from dataclasses import dataclass

from dpdmd.evaluate.metrics import metric_of
from dpdmd.evaluate.words import times, writer
from dpdmd.report.leads import Leads
from dpdmd.report.runs import ArmReport, is_number
from dpdmd.report.verdict import diversity_of, interval_of, quality_key, speedup_of


@dataclass(frozen=True)
class Other:
    """The same number of another arm."""

    arm: str
    label: str
    text: str


@dataclass(frozen=True)
class LargeNumber:
    """what: is measured. text: the student's number, "" where there is none. interval: its 95 % interval. better: what
    would be. others: the same of the teacher and the rival."""

    what: str
    text: str
    interval: str
    better: str
    others: list[Other]


def large_numbers(arms: dict[str, ArmReport], leads: Leads) -> list[LargeNumber]:
    """The three numbers; [] where there is no student or none of them was measured."""
    if leads.student is None:
        return []
    student, teacher = arms[leads.student], arms[leads.teacher] if leads.teacher else None
    numbers = [_diversity(arms, leads, student, teacher), _quality(arms, leads, student), _speed(arms, leads, student)]
    return numbers if any(number.text for number in numbers) else []


def _diversity(arms: dict[str, ArmReport], leads: Leads, student: ArmReport, teacher: ArmReport | None) -> LargeNumber:
    aim = "100 % is as varied as the teacher"
    if diversity_of(student, teacher) is None:
        return LargeNumber("diversity kept", "", "", aim, [])
    return _metric(arms, [leads.rival], student, "diversity_share", aim)


def _quality(arms: dict[str, ArmReport], leads: Leads, student: ArmReport) -> LargeNumber:
    key = quality_key(student)
    if key is None:
        return LargeNumber("quality", "", "", "", [])
    return _metric(arms, [leads.teacher, leads.rival], student, key, metric_of(key).better)


def _metric(
    arms: dict[str, ArmReport], others: list[str | None], student: ArmReport, key: str, better: str
) -> LargeNumber:
    metric, bounds = metric_of(key), interval_of(student, key)
    found = {name: arms[name].metrics.get(key) for name in others if name}
    known = {name: value for name, value in found.items() if is_number(value)}
    own = student.metrics[key]
    write = writer(metric.style, [own, *(bounds or ()), *known.values()])
    interval = f"95 % interval {write(bounds[0]).removesuffix(' %')} – {write(bounds[1])}" if bounds else ""
    listed = [Other(name, arms[name].name, write(value)) for name, value in known.items()]
    return LargeNumber(metric.heading, write(own), interval, better, listed)


def _speed(arms: dict[str, ArmReport], leads: Leads, student: ArmReport) -> LargeNumber:
    speedup, bounds = speedup_of(student), interval_of(student, "speedup")
    if speedup is None or bounds is None:
        return LargeNumber("time per image", "", "", "", [])
    own, usual = (student.metrics.get(key) for key in ("seconds_per_image", "reference_seconds_per_image"))
    if usual is None and leads.teacher:
        usual = arms[leads.teacher].metrics.get("seconds_per_image")
    others = []
    if is_number(own) and is_number(usual):
        write = writer("seconds", [own, usual])
        others = [Other(leads.student or "", student.name, write(own))]
        if leads.teacher:
            others = [Other(leads.teacher, arms[leads.teacher].name, write(usual)), *others]
    interval = f"{bounds[0]:.1f} to {bounds[1]:.1f} times as fast"
    return LargeNumber("time per image", times(speedup), interval, "of the teacher's; less is better", others)
