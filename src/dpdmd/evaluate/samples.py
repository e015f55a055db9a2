"""The images of a folder in a fixed order, and the teacher's images of the same prompts and seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from dpdmd.evaluate.manifest import ImageEntry, read_manifest
from dpdmd.store.digests import sha256_of
from dpdmd.store.png import read_png


@dataclass(frozen=True)
class Samples:
    """The images of a folder in a fixed order: prompt by prompt, within a prompt by rising seed."""

    folder: Path
    prompts: list[str]
    seeds: dict[str, list[int]]
    files: list[Path]

    @property
    def images_per_prompt(self) -> int:
        """The number of images, which is the same for every prompt."""
        return len(self.files) // len(self.prompts)

    @property
    def repeated_prompts(self) -> list[str]:
        """The prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]

    @cached_property
    def hashes(self) -> list[str]:
        """The SHA-256 of each image's file."""
        return [sha256_of(path) for path in self.files]

    def images(self) -> Iterator[Tensor]:
        """Each image (3, H, W) in [-1, 1], read when it is needed."""
        return (read_png(path) for path in self.files)


def read_samples(folder: str | Path, like: Samples | None = None) -> Samples:
    """The images of a folder; with `like`, only those of its prompts and seeds, if the folder has all of them.

    Raises ValueError like `read_manifest`, and when prompts have different numbers of images.
    """
    groups = read_manifest(folder).by_prompt()
    if like is not None and set(like.prompts) == set(groups):
        groups = {prompt: _of_seeds(groups[prompt], like.seeds[prompt]) for prompt in like.prompts}
    counts = {prompt: len(entries) for prompt, entries in groups.items()}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"{folder}: every prompt needs the same number of images, "
            f"got {counts[few]} for {few!r} and {counts[many]} for {many!r}"
        )
    files = [Path(folder) / entry.file for entries in groups.values() for entry in entries]
    seeds = {prompt: [entry.seed for entry in entries] for prompt, entries in groups.items()}
    return Samples(Path(folder), list(groups), seeds, files)


def read_reference(folder: str | Path, samples: Samples) -> Samples:
    """The teacher's images of the same prompts and seeds; its further seeds are ignored.

    Raises ValueError like `read_samples`, and when a prompt or seed is missing on either side.
    """
    reference = read_samples(folder, like=samples)
    ours, theirs = set(samples.prompts), set(reference.prompts)
    for missing, where in ((ours - theirs, reference.folder), (theirs - ours, samples.folder)):
        if missing:
            raise ValueError(
                f"the reference must have the same prompts: {len(missing)} missing in {where}, such as {min(missing)!r}"
            )
    for prompt in samples.prompts:
        if samples.seeds[prompt] != reference.seeds[prompt]:
            raise ValueError(
                f"the reference must have the same seeds: for {prompt!r} {samples.folder} has "
                f"{samples.seeds[prompt]}, {reference.folder} has {reference.seeds[prompt]}"
            )
    return reference


def _of_seeds(entries: list[ImageEntry], seeds: list[int]) -> list[ImageEntry]:
    wanted = [entry for entry in entries if entry.seed in seeds]
    return wanted if len(wanted) == len(seeds) else entries
