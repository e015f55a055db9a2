"""Image galleries of a report: the same prompts and seeds for every arm, and one overview image."""

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from dpdmd.evaluate.manifest import ImageEntry
from dpdmd.evaluate.words import percent
from dpdmd.report.leads import DMD, leads
from dpdmd.report.runs import ArmReport, is_number, per_prompt, shares_of, students_of
from dpdmd.report.summary import unreliable_frechet
from dpdmd.store.files import atomic_path
from dpdmd.store.pictures import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

SEEDS_PER_PROMPT = 9
# Larger images are shrunk to this edge. Images up to PIXELS are kept exactly and shown with visible pixels.
LARGEST_EDGE = 320
PIXELS = 128
# Limits of a page: prompts with images, and all images together; about 500 of LARGEST_EDGE.
MOST_PROMPTS, MOST_BYTES = 24, 8 * 2**20
NUM_COLLAPSED, NUM_KEPT = 8, 4
# Lines of the overview, unless its prompts are named.
OVERVIEW_PROMPTS = 4

Entries = dict[str, dict[str, list[ImageEntry]]]


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery as a data URL."""

    seed: int
    data: str


@dataclass(frozen=True)
class Gallery:
    """Images of one prompt from one arm; `caption` gives their diversity where it is known."""

    arm: str
    label: str
    caption: str
    images: list[GalleryImage]


@dataclass(frozen=True)
class PromptGalleries:
    """One prompt: why it was chosen ("" if it was not), and a gallery for each arm."""

    prompt: str
    reason: str
    galleries: list[Gallery]


def choose_prompts(
    arms: dict[str, ArmReport],
    decides: ArmReport | None,
    *,
    num_collapsed: int = NUM_COLLAPSED,
    num_kept: int = NUM_KEPT,
) -> dict[str, str]:
    """Prompts to show first and why: those where an arm keeps least of the teacher's diversity, then most.

    decides: this arm; without one the first prompts are chosen, without a reason. Every arm that has images has images
    of these prompts.
    """
    common = list(common_prompts(entries_of(arms)))
    if decides is None:
        return dict.fromkeys(common[: num_collapsed + num_kept], "")
    shares, ranked = shares_of(decides.metrics), ranked_prompts(common, decides)
    collapsed = ranked[:num_collapsed]
    kept = ranked[len(collapsed) :][::-1][:num_kept]
    reasons = {p: f"among the prompts where {decides.label} keeps least: {percent(shares[p])}" for p in collapsed}
    return reasons | {p: f"among the prompts where {decides.label} keeps most: {percent(shares[p])}" for p in kept}


def ranked_prompts(prompts: list[str], decides: ArmReport) -> list[str]:
    """The prompts of which an arm's diversity is known, from the one where it keeps least."""
    shares = shares_of(decides.metrics)
    return sorted((prompt for prompt in prompts if prompt in shares), key=lambda prompt: (shares[prompt], prompt))


def deciding_arm(arms: dict[str, ArmReport]) -> ArmReport | None:
    """The arm by whose losses prompts are sorted: the student that the page is about, else one with metrics of them."""
    names = [leads(arms).student, *students_of(arms)]
    return next((arms[name] for name in names if name in arms and shares_of(arms[name].metrics)), None)


def prompt_galleries(
    arms: dict[str, ArmReport], *, most_prompts: int = MOST_PROMPTS, most_bytes: int = MOST_BYTES
) -> list[PromptGalleries]:
    """Galleries of the chosen prompts, then of others in their order, up to `most_prompts` and `most_bytes`.

    When the chosen ones exceed this, the most and the least collapsed of them are kept.
    """
    entries = entries_of(arms)
    chosen = choose_prompts(arms, deciding_arm(arms))
    collapsed, kept = list(chosen)[:NUM_COLLAPSED], list(chosen)[NUM_COLLAPSED:]
    # Two of the most collapsed, one of the least, and so on: both are seen, however few fit.
    threes = zip_longest(collapsed[::2], collapsed[1::2], kept)
    order = [prompt for three in threes for prompt in three if prompt is not None]
    order += [prompt for prompt in common_prompts(entries) if prompt not in chosen]
    captions = {name: _captions(arm) for name, arm in arms.items()}
    found: dict[str, PromptGalleries] = {}
    weight = 0
    with ThreadPoolExecutor(4) as pool:
        for prompt in order[:most_prompts]:
            galleries = [
                Gallery(
                    name,
                    arms[name].label,
                    captions[name].get(prompt, ""),
                    list(pool.map(lambda entry, arm=arms[name]: gallery_image(arm, entry), of_arm[prompt])),
                )
                for name, of_arm in entries.items()
            ]
            weight += sum(len(image.data) for gallery in galleries for image in gallery.images)
            if found and weight > most_bytes:
                break
            found[prompt] = PromptGalleries(prompt, chosen.get(prompt, ""), galleries)
    return [found[prompt] for prompt in dict.fromkeys([*chosen, *found]) if prompt in found]


def write_overview_png(path: str | Path, arms: dict[str, ArmReport], *, prompts: list[str] | None = None) -> None:
    """Write one PNG: a line for each prompt, with a block of 3 x 3 images for each arm side by side.

    The nine seeds are the same in every block of a line; "teacher_few_steps" is left out. prompts: default those where
    DMD keeps least diversity, most collapsed first, and one where it keeps most.
    Raises ValueError when an arm lacks images of one of the prompts, or when no arm has any.
    """
    from PIL import Image, ImageDraw, ImageFont

    arms = {name: arm for name, arm in arms.items() if arm.images and name != "teacher_few_steps"}
    decides = arms.get(DMD) or deciding_arm(arms)
    if not prompts:
        chosen = choose_prompts(arms, decides, num_collapsed=OVERVIEW_PROMPTS - 1, num_kept=1)
        prompts = list(chosen)[:OVERVIEW_PROMPTS]
    entries = entries_of(arms)
    drawn = {p: [_block(arm, entries[name].get(p, [])) for name, arm in arms.items()] for p in prompts}
    blocks = {p: [block for block in row if block is not None] for p, row in drawn.items()}
    if not blocks or not arms or any(len(row) < len(arms) for row in blocks.values()):
        raise ValueError("an overview needs prompts of which every arm has images")
    edge = next(iter(blocks.values()))[0].width
    margin, gap, header, title = 24, 28, 78, 34
    width = 2 * margin + len(arms) * edge + (len(arms) - 1) * gap
    height = margin + header + len(blocks) * (title + edge + 14) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(22), ImageFont.load_default(17)
    for column, (name, arm) in enumerate(arms.items()):
        left = margin + column * (edge + gap)
        draw.text((left, margin), arm.label, font=heading, fill="#1b1f24")
        for line, note in enumerate(_notes(arm) if name != "teacher" else []):
            draw.text((left, margin + 30 + 20 * line), note, font=ImageFont.load_default(15), fill="#656d76")
    for row, (prompt, images) in enumerate(blocks.items()):
        top = margin + header + row * (title + edge + 14)
        draw.text((margin, top + 6), prompt, font=text, fill="#424a53")
        for column, image in enumerate(images):
            sheet.paste(image, (margin + column * (edge + gap), top + title))
    with atomic_path(path) as temporary:
        sheet.save(temporary, optimize=True)


def _notes(arm: ArmReport) -> list[str]:
    """What an overview says of a student: how much it varies, and whether that is what its teacher draws."""
    share, distance = arm.metrics.get("diversity_share"), arm.metrics.get("frechet")
    notes = [] if share is None else [f"{percent(share)} of the teacher's diversity"]
    return notes if distance is None or unreliable_frechet(arm) else [*notes, f"Frechet distance {distance:.2f}"]


def _block(arm: ArmReport, entries: list[ImageEntry]) -> "Image | None":
    """The images of one prompt as a sheet of 3 x 3."""
    from PIL import Image

    if not entries:
        return None
    cell, gap = 72, 3
    edge = 3 * cell + 2 * gap
    sheet = Image.new("RGB", (edge, edge), "white")
    for place, entry in enumerate(entries):
        image = read_picture(arm.file_of(entry))
        # Enlarged pixels stay visible as pixels, shrunk ones are averaged.
        how = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
        thumbnail = image.resize((cell, cell), how)
        sheet.paste(thumbnail, (place % 3 * (cell + gap), place // 3 * (cell + gap)))
    return sheet


def gallery_image(arm: ArmReport, entry: ImageEntry) -> GalleryImage:
    """An image of an arm, as it is embedded."""
    return GalleryImage(entry.seed, data_url(arm.file_of(entry), LARGEST_EDGE))


def _captions(arm: ArmReport) -> dict[str, str]:
    found = {row["prompt"]: row.get("diversity") for row in per_prompt(arm.metrics)}
    return {prompt: f"diversity {value:.2f}" for prompt, value in found.items() if is_number(value)}


def entries_of(arms: dict[str, ArmReport]) -> Entries:
    """The images to show, by arm and prompt, of the arms that have images."""
    return {
        name: {prompt: entries[:SEEDS_PER_PROMPT] for prompt, entries in arm.images.by_prompt().items()}
        for name, arm in arms.items()
        if arm.images
    }


def common_prompts(entries: Entries) -> dict[str, None]:
    """Prompts of which every arm with images has some, in the order of the first arm."""
    listed = list(entries.values())
    return dict.fromkeys(p for p in listed[0] if all(p in others for others in listed[1:])) if listed else {}


def data_url(path: Path, largest_edge: int) -> str:
    """An image file as a data URL: small images exactly (PNG), others shrunk to `largest_edge` (WebP)."""
    from PIL import Image

    buffer, image = BytesIO(), read_picture(path)
    is_small = max(image.size) <= PIXELS
    image.thumbnail((largest_edge, largest_edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if is_small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="WEBP", quality=75, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if is_small else 'webp'};base64,{data}"
