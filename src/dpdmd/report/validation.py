"""The pictures that a run drew while it trained: the teacher's images above the student's."""

from dataclasses import dataclass

from dpdmd.evaluate.words import percent
from dpdmd.report.galleries import data_url
from dpdmd.report.runs import ArmReport, is_number

MOST_PICTURES = 6  # of a run, evenly spaced
LARGEST_EDGE = 760


@dataclass(frozen=True)
class Film:
    """Pictures of one run, early ones first."""

    arm: str
    label: str
    pictures: list["FilmPicture"]


@dataclass(frozen=True)
class FilmPicture:
    """A picture after some student updates, as a data URL; caption: its scores, "" where there are none."""

    step: int
    caption: str
    data: str


def films(arms: dict[str, ArmReport]) -> list[Film]:
    """A film for each arm that has pictures of its validation."""
    return [_film(name, arm) for name, arm in arms.items() if arm.pictures]


def _film(name: str, arm: ArmReport) -> Film:
    steps = list(arm.pictures)
    if len(steps) > MOST_PICTURES:
        steps = [steps[round(i * (len(steps) - 1) / (MOST_PICTURES - 1))] for i in range(MOST_PICTURES)]
    rows = {row.get("step"): row for row in arm.log if "validation/diversity_share" in row}
    pictures = [
        FilmPicture(step, _caption(rows.get(step, {})), data_url(arm.pictures[step], LARGEST_EDGE)) for step in steps
    ]
    return Film(name, arm.label, pictures)


def _caption(row: dict) -> str:
    share, quality = row.get("validation/diversity_share"), row.get("validation/quality")
    parts = [f"diversity {percent(share)}"] if is_number(share) else []
    parts += [f"quality {percent(quality)}"] if is_number(quality) else []
    return ", ".join(parts).replace(" %", "\u00a0%")
