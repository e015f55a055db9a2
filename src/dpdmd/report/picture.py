"""The picture of the first screen: the same prompts and seeds by the teacher, the rival and the student."""

from dataclasses import dataclass

from dpdmd.report.galleries import (
    Gallery,
    PromptGalleries,
    common_prompts,
    deciding_arm,
    entries_of,
    gallery_image,
    ranked_prompts,
)
from dpdmd.report.leads import Leads
from dpdmd.report.runs import ArmReport

NUM_PROMPTS, NUM_SEEDS = 4, 6


@dataclass(frozen=True)
class Picture:
    """rows: a prompt each, with the images of every arm; seeds: images of each; choice: how the prompts were chosen."""

    rows: list[PromptGalleries]
    arms: int
    seeds: int
    choice: str


def picture(arms: dict[str, ArmReport], leads: Leads) -> Picture | None:
    """The picture; None when no two of the arms in it have images of a common prompt, or the only arm has none."""
    shown = {name: arms[name] for name in leads.shown() if arms[name].images}
    entries = entries_of(shown)
    common = list(common_prompts(entries))
    if not common:
        return None
    decides = deciding_arm(arms)
    ranked = ranked_prompts(common, decides) if decides else []
    prompts = _spread(ranked or common)
    rows = [
        PromptGalleries(
            prompt,
            "",
            [
                Gallery(name, arm.label, "", [gallery_image(arm, e) for e in entries[name][prompt][:NUM_SEEDS]])
                for name, arm in shown.items()
            ],
        )
        for prompt in prompts
    ]
    seeds = max(len(gallery.images) for row in rows for gallery in row.galleries)
    choice = f"{len(prompts)} of {len(common)} prompts" if len(prompts) < len(common) else ""
    if choice and ranked and decides:
        choice += f", from the one where {decides.label} keeps least diversity to the one where it keeps most"
    return Picture(rows, len(shown), seeds, choice)


def _spread(prompts: list[str]) -> list[str]:
    """NUM_PROMPTS of them, evenly from the first to the last."""
    if len(prompts) <= NUM_PROMPTS:
        return prompts
    return [prompts[round(i * (len(prompts) - 1) / (NUM_PROMPTS - 1))] for i in range(NUM_PROMPTS)]
