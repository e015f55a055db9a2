"""The picture of a model card: the teacher's images above the student's, of the same prompts and seeds."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dpdmd.evaluate.manifest import MANIFEST_NAME, read_manifest
from dpdmd.store.png import read_png, write_png
from dpdmd.training.validation.picture import picture, picture_path

PICTURE_FILE = "images.png"
NUM_PROMPTS, NUM_SEEDS = 2, 4


@dataclass(frozen=True)
class Picture:
    """What a card says of its picture: a sentence in Markdown, and the prompts where they are known."""

    caption: str
    prompts: Sequence[str] = ()


ROWS = "In every pair of rows the teacher above, the student below, from the same noise"


def write_picture(run: Path, places: Sequence[Path], updates: int, path: Path) -> Picture | None:
    """Write the picture of a student to `path`; returns what it shows, None if there are no images.

    run: folder of the student, whose samples/ and teacher_samples/ come first. Otherwise the picture of validation
    after `updates` updates is taken, from a folder of `places`.
    """
    student, teacher = run / "samples", run / "teacher_samples"
    if (student / MANIFEST_NAME).is_file() and (teacher / MANIFEST_NAME).is_file():
        prompts = _compared(teacher, student, path)
        if prompts:
            return Picture(f"{ROWS}.", prompts)
    for place in places:
        if (found := picture_path(place / "validation", updates)).is_file():
            shutil.copyfile(found, path)
            return Picture(f"{ROWS}, at a validation.")
    return None


def _compared(teacher: Path, student: Path, path: Path) -> list[str]:
    """Draw two prompts with four seeds at most, and return them; none if the folders do not fit each other."""
    theirs, ours = (
        {(entry.prompt, entry.seed): folder / entry.file for entry in read_manifest(folder).images}
        for folder in (teacher, student)
    )
    seeds: dict[str, list[int]] = {}
    for prompt, seed in ours:
        if (prompt, seed) in theirs:
            seeds.setdefault(prompt, []).append(seed)
    prompts = list(seeds)[:NUM_PROMPTS]
    number = min([NUM_SEEDS, *(len(seeds[prompt]) for prompt in prompts)])
    keys = [(prompt, seed) for prompt in prompts for seed in seeds[prompt][:number]]
    images = [[read_png(files[key]) for key in keys] for files in (theirs, ours)]
    if len({image.shape for row in images for image in row}) != 1:
        return []
    write_png(path, picture(torch.stack(images[0]), torch.stack(images[1]), prompts))
    return prompts
