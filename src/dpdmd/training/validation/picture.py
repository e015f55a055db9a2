"""One picture of teacher and student: under each prompt a row of the teacher's images and a row of the student's."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

GAP = 1
# Smaller images are enlarged to this side by a whole factor, so that their pixels and the text can be seen.
SMALLEST_SIDE = 96
FONT_SIZE, MOST_LINES = 12, 3


def picture_path(folder: Path, step: int) -> Path:
    """Path of the picture of a step."""
    return folder / f"step-{step:06d}.png"


def picture(teacher: Tensor, student: Tensor, prompts: list[str]) -> Tensor:
    """Two sets of images (P * S, 3, H, W) of P prompts as one image (3, H', W').

    Per prompt a strip with its text, then a row of the teacher's S images, then one of the student's, in white frames.
    """
    factor = -(-SMALLEST_SIDE // min(teacher.shape[-2:]))
    sets = (images.unflatten(0, (len(prompts), -1)).clamp(-1, 1) for images in (teacher, student))
    rows = torch.stack(list(sets), dim=1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    framed = F.pad(rows, (GAP, GAP, GAP, GAP), value=1.0)
    parts = []
    for prompt, pair in zip(prompts, framed, strict=True):
        lines = [torch.cat(list(row), dim=-1) for row in pair]
        parts += [text_strip(prompt, lines[0].shape[-1]), *lines]
    return torch.cat(parts, dim=-2)


def text_strip(text: str, width: int) -> Tensor:
    """Black text on white in at most MOST_LINES lines, (3, H, width) in [-1, 1]."""
    size = max(FONT_SIZE, width // 64)
    font = ImageFont.load_default(size)
    lines = _wrapped(text, width - size, font)
    strip = Image.new("RGB", (width, size // 2 + len(lines) * size * 5 // 4), "white")
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((size // 2, size // 4 + number * size * 5 // 4), line, font=font, fill="black")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1).float() / 127.5 - 1


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines no wider than `width` pixels, broken at spaces where there are any; "..." for what is left."""
    lines, left = [], " ".join(text.split())
    while left and len(lines) < MOST_LINES:
        fits = next((n for n in range(len(left), 1, -1) if font.getlength(left[:n]) <= width), 1)
        if fits < len(left):
            fits = left.rfind(" ", 1, fits + 1) if " " in left[1 : fits + 1] else fits
        lines.append(left[:fits].rstrip())
        left = left[fits:].lstrip()
    if left:
        lines[-1] = lines[-1][:-3] + "..."
    return lines or [""]
