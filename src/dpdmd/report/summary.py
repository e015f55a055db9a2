"""The metrics in words: sentences before the tables of numbers, whatever the outcome."""

from dpdmd.evaluate.intervals import Estimate
from dpdmd.evaluate.metrics import COST, DIVERSITY, LIKENESS, QUALITY, SAMPLING, metric_of
from dpdmd.evaluate.words import duration, joined, percent, signed
from dpdmd.report.differences import by_seed, difference
from dpdmd.report.leads import leads
from dpdmd.report.runs import ArmReport, is_number, students_of

# How far a share of saturated colour values must exceed the teacher's to be mentioned.
NOTABLE_SATURATION = 0.05
# Keys of the quality scores that are put into words; the table has all of them.
SCORES = ("image_reward", "pick_score", "hps_v21", "clip_score")


def answers(arms: dict[str, ArmReport]) -> dict[str, list[str]]:
    """{group of metrics: sentences}, for what was measured."""
    students, pair = students_of(arms), _pair(arms)
    found = {
        DIVERSITY: [
            _diversity(students),
            _worst(students),
            pair and _diversity_verdict(*pair),
            _modes(arms, students),
            _saturation(arms, students),
        ],
        LIKENESS: [_distance(students)],
        QUALITY: [_quality(arms, students), _scores(arms, students), pair and _quality_verdict(*pair)],
        SAMPLING: [_speed(students)],
        COST: [_time(students)],
    }
    return {group: [sentence for sentence in sentences if sentence] for group, sentences in found.items()}


def _pair(arms: dict[str, ArmReport]) -> tuple[ArmReport, ArmReport] | None:
    """The two students to compare in words, if there are two."""
    chosen = leads(arms)
    if chosen.student is None or chosen.rival is None:
        return None
    return arms[chosen.student], arms[chosen.rival]


def _diversity(students: dict[str, ArmReport]) -> str | None:
    parts = []
    for arm in students.values():
        share = arm.metrics.get("diversity_share")
        if is_number(share):
            interval = arm.metrics.get("intervals", {}).get("diversity_share")
            between = f" (95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ""
            parts.append(f"{arm.label} has {percent(share)}{between}")
    return f"Of the teacher's diversity, {joined(parts)}." if parts else None


def _worst(students: dict[str, ArmReport]) -> str | None:
    key = "diversity_share_worst_tenth"
    shares = {arm.label: arm.metrics.get(key) for arm in students.values()}
    parts = [f"{label} keeps {percent(share)}" for label, share in shares.items() if is_number(share)]
    return f"In the tenth of prompts that keep least diversity, {joined(parts)}." if parts else None


def _diversity_verdict(a: ArmReport, b: ArmReport) -> str | None:
    for key in ("diversity_share", "diversity"):
        gap = difference(a, b, key)
        if gap is not None:
            points = key == "diversity_share"
            of = " of the teacher's diversity" if points else ""
            return _verdict(a, b, gap, key, "is more diverse than", "in diversity", of, points)
    return None


def _distance(students: dict[str, ArmReport]) -> str | None:
    """Distances to the teacher: a diverse student may still draw other things."""
    sentences = []
    for key, what in (
        ("frechet", "The Frechet distance to the teacher's images is"),
        (
            "total_variation_reference",
            "Where the prompt leaves a choice, the total variation to the teacher is",
        ),
    ):
        parts = [
            f"{arm.metrics[key]:.2f} for {arm.label}"
            for arm in students.values()
            if is_number(arm.metrics.get(key)) and not (key == "frechet" and unreliable_frechet(arm))
        ]
        if parts:
            sentences.append(f"{what} {joined(parts)}.")
    return " ".join(sentences) or None


def unreliable_frechet(arm: ArmReport) -> bool:
    """Whether the Frechet distance of an arm comes from fewer images than its features have dimensions."""
    return arm.metrics.get("frechet_reliable") is False


def overdriven(arm: ArmReport, teacher: ArmReport | None) -> bool:
    """Whether an arm's colours are clearly more saturated than the teacher's, which alone raises its diversity."""
    own, usual = (found.metrics.get("saturation") if found else None for found in (arm, teacher))
    return is_number(own) and is_number(usual) and own > usual + NOTABLE_SATURATION


def _quality(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    sentences = []
    for key, what in (("named_accuracy", "What a prompt names is drawn right"), ("validity", "A clean image is drawn")):
        parts = [
            f"{percent(arm.metrics[key])} of the time by {arm.label}"
            for arm in students.values()
            if is_number(arm.metrics.get(key))
        ]
        teacher = arms["teacher"].metrics.get(key) if "teacher" in arms else None
        if parts:
            aside = f" (the teacher: {percent(teacher)})" if is_number(teacher) else ""
            sentences.append(f"{what} {joined(parts)}{aside}.")
    return " ".join(sentences) or None


def _scores(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    """Quality of single images, judged by networks."""
    sentences = []
    for key in SCORES:
        parts = [
            f"{arm.metrics[key]:.3g} for {arm.label}" for arm in students.values() if is_number(arm.metrics.get(key))
        ]
        teacher = arms["teacher"].metrics.get(key) if "teacher" in arms else None
        if parts:
            aside = f" (the teacher: {teacher:.3g})" if is_number(teacher) else ""
            sentences.append(f"{metric_of(key).heading} ({metric_of(key).better}): {joined(parts)}{aside}.")
    return " ".join(sentences) or None


def _quality_verdict(a: ArmReport, b: ArmReport) -> str | None:
    metrics = (
        ("named_accuracy", "follows the prompt better than", "in following the prompt"),
        ("validity", "draws more clean images than", "in drawing clean images"),
        *((key, f"has a better {metric_of(key).heading} than", f"in {metric_of(key).heading}") for key in SCORES),
    )
    gaps = [(difference(a, b, key), key, more, where) for key, more, where in metrics]
    sentences = [
        _verdict(a, b, gap, key, more, where, "", key not in SCORES)
        for gap, key, more, where in gaps
        if gap is not None
    ]
    return " ".join(sentences) or None


def _verdict(a: ArmReport, b: ArmReport, gap: Estimate, key: str, more: str, where: str, of: str, points: bool) -> str:
    scale, unit = (100, " percentage points") if points else (1, "")
    digits = 1 if points else 3
    if gap.value == 0 and gap.interval in (None, [0, 0]):
        return f"{a.label} and {b.label} have the same score {where} on every prompt."
    if gap.low is None or gap.high is None:
        winner, loser = (a, b) if gap.value > 0 else (b, a)
        return (
            f"{winner.label} {more} {loser.label} by {abs(scale * gap.value):.{digits}f}{unit}{of}; "
            "there is no interval to say whether that is more than chance."
        )
    if gap.low <= 0 <= gap.high:
        bounds = f"{signed(scale * gap.low, digits)} to {signed(scale * gap.high, digits)}"
        these = f"these {gap.n} training seeds" if by_seed(a, b, key) else "these prompts"
        return (
            f"The difference between {a.label} and {b.label} {where} is not settled by {these}: "
            f"{signed(scale * gap.value, digits)}{unit}{of}, 95 % interval {bounds}."
        )
    winner, loser = (a, b) if gap.value > 0 else (b, a)
    low, high = sorted((abs(scale * gap.low), abs(scale * gap.high)))
    return (
        f"{winner.label} {more} {loser.label}, by {abs(scale * gap.value):.{digits}f}{unit}{of} "
        f"(95 % interval {low:.{digits}f} to {high:.{digits}f})."
    )


def _modes(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    shown = {name: arm for name, arm in arms.items() if name == "teacher"} | students
    parts = [
        f"{arm.metrics['effective_modes']:.1f} for {arm.label}"
        for arm in shown.values()
        if is_number(arm.metrics.get("effective_modes"))
    ]
    if not parts:
        return None
    return f"The effective number of values of a property that the prompt leaves open is {joined(parts)}."


def _saturation(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    """Only where a student's colours are clearly more overdriven than the teacher's."""
    teacher = arms.get("teacher")
    parts = [
        f"{percent(arm.metrics['saturation'])} of {arm.label}'s colour values"
        for arm in students.values()
        if overdriven(arm, teacher)
    ]
    if not parts or teacher is None:
        return None
    usual = teacher.metrics["saturation"]
    return (
        f"Colours are overdriven: {joined(parts)} are at the end of their range (the teacher: {percent(usual)}). "
        "That alone raises diversity in features, so rather trust the effective number of values."
    )


def _speed(students: dict[str, ArmReport]) -> str | None:
    parts = [
        f"{arm.label} draws {arm.metrics['speedup']:.3g} images"
        for arm in students.values()
        if is_number(arm.metrics.get("speedup"))
    ]
    return f"In the time that the teacher takes for one image, {joined(parts)}." if parts else None


def _time(students: dict[str, ArmReport]) -> str | None:
    parts = [
        f"{duration(arm.metrics['seconds'])} for {arm.label}"
        for arm in students.values()
        if is_number(arm.metrics.get("seconds"))
    ]
    return f"The runs took {joined(parts)}." if parts else None
