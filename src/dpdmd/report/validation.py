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
    """A film for each arm that has pictures of its validation, and for each size of an arm of several."""
    return [
        _film(name, arm, size)
        for name, of_arm in arms.items()
        for size, arm in [(_first_size(of_arm), of_arm), *of_arm.sizes.items()]
        if arm.pictures
    ]


def _first_size(arm: ArmReport) -> str:
    """The size of its own pictures, if there are others: that of its scores which is none of the further sizes."""
    parts = [key.split("/") for row in arm.log for key in row if arm.sizes and key.startswith("validation/")]
    return next((part[1] for part in parts if len(part) == 3 and part[1] not in arm.sizes), "")


def _film(name: str, arm: ArmReport, size: str) -> Film:
    """size: which scores and which label; "" for that of a run of one size."""
    steps = list(arm.pictures)
    if len(steps) > MOST_PICTURES:
        steps = [steps[round(i * (len(steps) - 1) / (MOST_PICTURES - 1))] for i in range(MOST_PICTURES)]
    rows = {row.get("step"): row for row in arm.log if "validation/diversity_share" in row}
    pictures = [
        FilmPicture(step, _caption(rows.get(step, {}), size), data_url(arm.pictures[step], LARGEST_EDGE))
        for step in steps
    ]
    return Film(name, f"{arm.label}, {size} pixels" if size else arm.label, pictures)


def _caption(row: dict, size: str) -> str:
    keys = [f"validation/{size}/{key}" if size else f"validation/{key}" for key in ("diversity_share", "quality")]
    share, quality = map(row.get, keys)
    parts = [f"diversity {percent(share)}"] if is_number(share) else []
    parts += [f"quality {percent(quality)}"] if is_number(quality) else []
    return ", ".join(parts).replace(" %", "\u00a0%")
