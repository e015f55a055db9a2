"""The metrics in words: sentences for the top of a report, whatever the outcome."""

from dpdmd.evaluate.intervals import Estimate, mean_estimate, ratio_estimate, t_estimate
from dpdmd.evaluate.metrics import metric_of
from dpdmd.report.runs import ArmReport, is_number, per_prompt, students_of

# How far a share of saturated colour values must exceed the teacher's to be mentioned.
NOTABLE_SATURATION = 0.05
# Keys of the quality scores that are put into words; the table has all of them.
SCORES = ("image_reward", "pick_score", "hps_v21", "clip_score")


def summary_sentences(arms: dict[str, ArmReport]) -> list[str]:
    """Sentences on diversity, quality and time, for what was measured."""
    students = students_of(arms)
    pair = _pair(arms, students)
    sentences = [_diversity(students), _worst(students), pair and _diversity_verdict(*pair), _distance(students)]
    sentences += [_quality(arms, students), _scores(arms, students), pair and _quality_verdict(*pair)]
    sentences += [_modes(arms, students), _saturation(arms, students), _time(students)]
    return [sentence for sentence in sentences if sentence]


def difference(a: ArmReport, b: ArmReport, key: str) -> Estimate | None:
    """a - b of a metric, paired by training seed where both have it for two seeds, else by prompt.

    The interval is Student's t over seeds, or the bootstrap over prompts; without common seeds or prompts there is
    none. Returns None when either lacks the metric.
    """
    first, second = a.metrics.get(key), b.metrics.get(key)
    if not is_number(first) or not is_number(second):
        return None
    by_seed = _by_seed(a, b, key)
    if by_seed:
        return t_estimate(by_seed)
    own = "diversity" if key == "diversity_share" else key
    of_a, of_b = _by_prompt(a, own), _by_prompt(b, own)
    if not of_a or of_a.keys() != of_b.keys():
        return Estimate(first - second, None, None, 0)
    gaps = [of_a[prompt] - of_b[prompt] for prompt in of_a]
    if key != "diversity_share":
        return mean_estimate(gaps)
    reference = _by_prompt(a, "reference_diversity")
    if reference.keys() != of_a.keys():
        return Estimate(first - second, None, None, 0)
    return ratio_estimate(gaps, [reference[prompt] for prompt in of_a])


def percent(value: float) -> str:
    """0.923 as "92 %"."""
    return f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as "7.5 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _pair(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> tuple[ArmReport, ArmReport] | None:
    """The two students to compare, DP-DMD first; None unless both it and DMD are there, or there are just two."""
    if "dp_dmd" in arms and "dmd" in arms:
        return arms["dp_dmd"], arms["dmd"]
    if len(students) != 2:
        return None
    first, second = students.values()
    return first, second


def _diversity(students: dict[str, ArmReport]) -> str | None:
    parts = []
    for arm in students.values():
        share = arm.metrics.get("diversity_share")
        if is_number(share):
            interval = arm.metrics.get("intervals", {}).get("diversity_share")
            between = f" (95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ""
            parts.append(f"{arm.label} has {percent(share)}{between}")
    return f"Of the teacher's diversity, {_join(parts)}." if parts else None


def _worst(students: dict[str, ArmReport]) -> str | None:
    key = "diversity_share_worst_tenth"
    shares = {arm.label: arm.metrics.get(key) for arm in students.values()}
    parts = [f"{percent(share)} is left for {label}" for label, share in shares.items() if is_number(share)]
    return f"In the tenth of prompts that lost most diversity, {_join(parts)}." if parts else None


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
            f"{arm.metrics[key]:.2f} for {arm.label}" for arm in students.values() if is_number(arm.metrics.get(key))
        ]
        if parts:
            sentences.append(f"{what} {_join(parts)}.")
    return " ".join(sentences) or None


def _quality(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    sentences = []
    for key, what in (("named_accuracy", "What a prompt names is drawn right"), ("validity", "A clean scene is drawn")):
        parts = [
            f"{percent(arm.metrics[key])} of the time by {arm.label}"
            for arm in students.values()
            if is_number(arm.metrics.get(key))
        ]
        teacher = arms["teacher"].metrics.get(key) if "teacher" in arms else None
        if parts:
            aside = f" (the teacher: {percent(teacher)})" if is_number(teacher) else ""
            sentences.append(f"{what} {_join(parts)}{aside}.")
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
            sentences.append(f"{metric_of(key).heading} ({metric_of(key).better}): {_join(parts)}{aside}.")
    return " ".join(sentences) or None


def _quality_verdict(a: ArmReport, b: ArmReport) -> str | None:
    metrics = (
        ("named_accuracy", "follows the prompt better than", "in following the prompt"),
        ("validity", "draws more clean scenes than", "in drawing clean scenes"),
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
        return f"{a.label} and {b.label} have equal scores {where}."
    if gap.low is None or gap.high is None:
        winner, loser = (a, b) if gap.value > 0 else (b, a)
        return (
            f"{winner.label} {more} {loser.label} by {abs(scale * gap.value):.{digits}f}{unit}{of}; "
            "there is no interval to say whether that is more than chance."
        )
    if gap.low <= 0 <= gap.high:
        bounds = f"{scale * gap.low:+.{digits}f} to {scale * gap.high:+.{digits}f}"
        these = f"these {gap.n} training seeds" if _by_seed(a, b, key) else "these prompts"
        return (
            f"The difference between {a.label} and {b.label} {where} is not settled by {these}: "
            f"{scale * gap.value:+.{digits}f}{unit}{of}, 95 % interval {bounds}."
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
    return f"The effective number of values of a property that the prompt leaves open is {_join(parts)}."


def _saturation(arms: dict[str, ArmReport], students: dict[str, ArmReport]) -> str | None:
    """Only where a student's colours are clearly more overdriven than the teacher's."""
    usual = arms["teacher"].metrics.get("saturation") if "teacher" in arms else None
    if not is_number(usual):
        return None
    shares = {arm.label: arm.metrics.get("saturation") for arm in students.values()}
    parts = [
        f"{percent(v)} of {label}'s colour values"
        for label, v in shares.items()
        if is_number(v) and v > usual + NOTABLE_SATURATION
    ]
    if not parts:
        return None
    return (
        f"Colours are overdriven: {_join(parts)} are at the end of their range (the teacher: {percent(usual)}). "
        "That alone raises diversity in features, so rather trust the effective number of values."
    )


def _time(students: dict[str, ArmReport]) -> str | None:
    parts = [
        f"{duration(arm.metrics['seconds'])} for {arm.label}"
        for arm in students.values()
        if is_number(arm.metrics.get("seconds"))
    ]
    return f"The runs took {_join(parts)}." if parts else None


def _by_seed(a: ArmReport, b: ArmReport, key: str) -> list[float]:
    """a - b for each training seed that both have; [] for fewer than two."""
    first, second = (arm.metrics.get("values", {}).get(key, []) for arm in (a, b))
    gaps = [x - y for x, y in zip(first, second, strict=False) if x is not None and y is not None]
    return gaps if len(gaps) > 1 else []


def _by_prompt(arm: ArmReport, key: str) -> dict[str, float]:
    return {row["prompt"]: row[key] for row in per_prompt(arm.metrics) if is_number(row.get(key))}


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
