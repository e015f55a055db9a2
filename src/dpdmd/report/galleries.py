"""Pictures of a report: the same prompts and seeds row by row, and one overview picture for a README."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dpdmd.files import atomic_path
from dpdmd.report.runs import ArmReport
from dpdmd.report.summary import percent

if TYPE_CHECKING:
    from PIL.Image import Image

SEEDS_PER_PROMPT = 9
# Larger images are shrunk to this edge, so that a page with hundreds of them stays a few MB.
LARGEST_EDGE = 256


@dataclass(frozen=True)
class Picture:
    """One image of a gallery as a data address."""

    seed: int
    data: str


@dataclass(frozen=True)
class Gallery:
    """Images of one prompt by one row; `caption` says its diversity where known."""

    arm: str
    label: str
    caption: str
    pictures: list[Picture]


@dataclass(frozen=True)
class PromptRow:
    """One prompt: why it is shown, and a gallery per row of the report."""

    prompt: str
    reason: str
    galleries: list[Gallery]


def choose_prompts(arms: dict[str, ArmReport], *, num_collapsed: int = 4, num_kept: int = 2) -> dict[str, str]:
    """Prompts to show first and why: those where DMD lost most of the teacher's diversity, and those where least.

    Without a row called dmd the first student with figures per prompt decides; without any, the first prompts are
    taken. Only prompts that every row with images has are chosen.
    """
    common = _common_prompts(arms)
    decides = _deciding_arm(arms)
    if decides is None:
        return dict.fromkeys(common[: num_collapsed + num_kept], "")
    shares = {prompt: share for prompt, share in _shares(decides).items() if prompt in common}
    ranked = sorted(shares, key=lambda prompt: (shares[prompt], prompt))
    collapsed = ranked[:num_collapsed]
    kept = ranked[len(collapsed) :][::-1][:num_kept]
    reasons = {p: f"among those where {decides.label} lost most: {percent(shares[p])} left" for p in collapsed}
    return reasons | {p: f"among those where {decides.label} lost least: {percent(shares[p])} left" for p in kept}


def prompt_rows(arms: dict[str, ArmReport], *, max_prompts: int = 24) -> list[PromptRow]:
    """The chosen prompts first, then others in their order, up to `max_prompts`."""
    chosen = choose_prompts(arms)
    prompts = list(chosen) + [prompt for prompt in _common_prompts(arms) if prompt not in chosen]
    rows = []
    for prompt in prompts[:max_prompts]:
        galleries = [gallery for name, arm in arms.items() if (gallery := _gallery(name, arm, prompt))]
        rows.append(PromptRow(prompt, chosen.get(prompt, ""), galleries))
    return rows


def write_overview_png(
    path: str | Path, arms: dict[str, ArmReport], *, prompts: list[str] | None = None, num_prompts: int = 4
) -> None:
    """One picture: a block per prompt, in it teacher, DMD and DP-DMD (or whichever rows have images) side by side.

    Each block is 3 x 3 images of nine seeds, the same seeds in every block of a prompt. prompts: default those chosen
    by `choose_prompts`, most collapsed first. Raises ValueError when no prompt has images in every row.
    """
    from PIL import Image, ImageDraw, ImageFont

    arms = {name: arm for name, arm in arms.items() if arm.images and name != "teacher_few_steps"}
    prompts = prompts or list(choose_prompts(arms, num_collapsed=num_prompts - 1, num_kept=1))[:num_prompts]
    blocks = {p: [_block(arm, p) for arm in arms.values()] for p in prompts}
    if not blocks or not arms or any(block is None for row in blocks.values() for block in row):
        raise ValueError("an overview needs prompts with images in every row")
    edge = next(iter(blocks.values()))[0].width
    margin, gap, header, title = 24, 28, 58, 34
    width = 2 * margin + len(arms) * edge + (len(arms) - 1) * gap
    height = margin + header + len(blocks) * (title + edge + 14) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(22), ImageFont.load_default(17)
    for column, (name, arm) in enumerate(arms.items()):
        left = margin + column * (edge + gap)
        draw.text((left, margin), arm.label, font=heading, fill="#1b1f24")
        share = arm.metrics.get("diversity_share")
        if share is not None and name != "teacher":
            note = f"{percent(share)} of the teacher's diversity"
            draw.text((left, margin + 30), note, font=ImageFont.load_default(15), fill="#656d76")
    for row, (prompt, images) in enumerate(blocks.items()):
        top = margin + header + row * (title + edge + 14)
        draw.text((margin, top + 6), prompt, font=text, fill="#424a53")
        for column, image in enumerate(images):
            sheet.paste(image, (margin + column * (edge + gap), top + title))
    with atomic_path(path) as temporary:
        sheet.save(temporary, optimize=True)


def _block(arm: ArmReport, prompt: str, *, cell: int = 72, gap: int = 3) -> "Image | None":
    """Nine images of one prompt as a 3 x 3 sheet."""
    from PIL import Image

    entries = _entries(arm, prompt)
    if not entries:
        return None
    edge = 3 * cell + 2 * gap
    sheet = Image.new("RGB", (edge, edge), "white")
    for place, entry in enumerate(entries):
        with Image.open(arm.samples / entry.file) as image:
            # Enlarged pixels stay visible as pixels, shrunk ones are averaged.
            how = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
            thumbnail = image.convert("RGB").resize((cell, cell), how)
        sheet.paste(thumbnail, (place % 3 * (cell + gap), place // 3 * (cell + gap)))
    return sheet


def _gallery(name: str, arm: ArmReport, prompt: str) -> Gallery | None:
    entries = _entries(arm, prompt)
    if not entries:
        return None
    pictures = [Picture(entry.seed, _data_address(arm.samples / entry.file)) for entry in entries]
    row = next((row for row in arm.metrics.get("per_prompt", []) if row.get("prompt") == prompt), {})
    caption = f"diversity {row['diversity']:.2f}" if isinstance(row.get("diversity"), float) else ""
    return Gallery(name, arm.label, caption, pictures)


def _entries(arm: ArmReport, prompt: str) -> list:
    return arm.images.by_prompt().get(prompt, [])[:SEEDS_PER_PROMPT] if arm.images else []


def _data_address(path: Path) -> str:
    """An image file as a data address: small ones as PNG as they are, large ones shrunk."""
    from PIL import Image

    buffer = BytesIO()
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((LARGEST_EDGE, LARGEST_EDGE), Image.Resampling.LANCZOS)
        image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _common_prompts(arms: dict[str, ArmReport]) -> list[str]:
    """Prompts that every row with images has, in the first row's order."""
    listed = [list(arm.images.by_prompt()) for arm in arms.values() if arm.images]
    return [prompt for prompt in listed[0] if all(prompt in others for others in listed[1:])] if listed else []


def _deciding_arm(arms: dict[str, ArmReport]) -> ArmReport | None:
    names = ["dmd"] + [name for name in arms if name not in ("teacher", "teacher_few_steps", "dmd")]
    return next((arms[name] for name in names if name in arms and _shares(arms[name])), None)


def _shares(arm: ArmReport) -> dict[str, float]:
    """Share of the reference's diversity on each prompt, where the reference has any."""
    rows = arm.metrics.get("per_prompt")
    return {
        row["prompt"]: row["diversity"] / row["reference_diversity"]
        for row in (rows if isinstance(rows, list) else [])
        if row.get("diversity") is not None and (row.get("reference_diversity") or 0) > 0
    }
