"""What the page shows of a student of several sizes: the first as of any other, then each further size."""

from dataclasses import dataclass
from typing import Any

from dpdmd.report.galleries import PromptGalleries, prompt_galleries
from dpdmd.report.leads import leads
from dpdmd.report.runs import ArmReport, at_size
from dpdmd.report.tables import Table, make_tables, table_rows
from dpdmd.report.verdict import verdict

# Of each further size: prompts with images, and all its images together.
MOST_PROMPTS, MOST_BYTES = 6, 2 * 2**20


@dataclass(frozen=True)
class Size:
    """What the page shows of one of several sizes: the arms that were scored at it, and what is made of them."""

    name: str
    arms: dict[str, ArmReport]
    verdict: str
    tables: list[Table]
    galleries: list[PromptGalleries]


def further_sizes(arms: dict[str, ArmReport]) -> list[Size]:
    """All sizes but the first at which an arm was scored."""
    scored = {size: at_size(arms, size) for arm in arms.values() for size in arm.sizes}
    return [
        Size(
            size,
            own,
            verdict(own, leads(own)).sentence,
            make_tables(own),
            prompt_galleries(own, most_prompts=MOST_PROMPTS, most_bytes=MOST_BYTES),
        )
        for size, own in scored.items()
        if own
    ]


def of_which_size(arms: dict[str, ArmReport], sizes: list[Size]) -> list[str]:
    """Says that all but the last section is about the first size, if there are others."""
    first = next((arm.metrics["image_size"] for arm in arms.values() if "image_size" in arm.metrics), None)
    if not sizes or first is None:
        return []
    others = ", ".join(size.name for size in sizes)
    return [f"All of this is about images of {first} pixels (height x width). Others were scored as well: {others}."]


def all_numbers(tables: list[Table], arms: dict[str, ArmReport], sizes: list[Size]) -> list[dict[str, Any]]:
    """The rows of all tables; those of further sizes name theirs."""
    further = [row | {"size": size.name} for size in sizes for row in table_rows(size.tables, size.arms)]
    return table_rows(tables, arms) + further
