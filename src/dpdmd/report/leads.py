"""Which arms the first screen speaks of: one student, what it is compared with, and their teacher."""

from dataclasses import dataclass

from dpdmd.report.runs import LABELS, TEACHER, ArmReport, is_number, students_of

DP_DMD, DMD = "dp_dmd", "dmd"
# A student that keeps this share of its teacher's diversity is judged by its quality, as `dpdmd train` does.
ENOUGH = 0.8


@dataclass(frozen=True)
class Leads:
    """Names of arms. student: the one that the page is about; rival: the one it is compared with; teacher."""

    student: str | None
    rival: str | None
    teacher: str | None

    def shown(self) -> list[str]:
        """Those that there are, in the order of the picture: the teacher, the rival, the student."""
        return [name for name in (self.teacher, self.rival, self.student) if name is not None]


def kinds(arms: dict[str, ArmReport]) -> dict[str, str]:
    """What each arm is: a name of LABELS, by its own name or, where no other arm has it, by its objective."""
    found = {name: name for name in arms}
    for kind in LABELS:
        of_objective = [name for name, arm in arms.items() if name not in LABELS and arm.objective == kind]
        if kind not in arms and len(of_objective) == 1:
            found[of_objective[0]] = kind
    return found


def leads(arms: dict[str, ArmReport]) -> Leads:
    """The student is DP-DMD where there is one, else the best in diversity and quality; its rival is DMD, else the only
    other student."""
    students, kind = students_of(arms), kinds(arms)
    of = {kind[name]: name for name in students}
    student = of.get(DP_DMD) or _best(students)
    others = [name for name in students if name != student]
    rival = of.get(DMD) if of.get(DMD) != student else None
    if rival is None and len(others) == 1:
        rival = others[0]
    return Leads(student, rival, TEACHER if TEACHER in arms else None)


def _best(students: dict[str, ArmReport]) -> str | None:
    """The student of the best quality among those that keep enough diversity, else the one that keeps most."""

    def worth(name: str) -> tuple[bool, float]:
        metrics = students[name].metrics
        share, quality = metrics.get("diversity_share"), metrics.get("quality")
        share = share if is_number(share) else 0.0
        return share >= ENOUGH, quality if share >= ENOUGH and is_number(quality) else share

    return max(students, key=worth, default=None)
