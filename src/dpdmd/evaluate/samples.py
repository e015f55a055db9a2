"""The images of a folder in a fixed order, and the teacher's images of the same prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from dpdmd.evaluate.manifest import ImageEntry, read_manifest
from dpdmd.store.digests import sha256_of
from dpdmd.store.pictures import Size, picture_size, size_name
from dpdmd.store.png import read_png


@dataclass(frozen=True)
class Samples:
    """Images of a folder in a fixed order: prompt by prompt, within a prompt by rising seed."""

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


def read_samples(folder: str | Path) -> Samples:
    """The images of a folder, whatever their sizes.

    Raises ValueError like `read_manifest`, and when prompts have different numbers of images.
    """
    return _samples(folder, read_manifest(folder).by_prompt())


def samples_by_size(folder: str | Path) -> dict[Size, Samples]:
    """The images of a folder by their size, in the order of its prompts; images of one size are scored together.

    Raises ValueError like `read_manifest`, for a broken image, and when the prompts of a size have different numbers of
    images.
    """
    sizes: dict[Size, dict[str, list[ImageEntry]]] = {}
    for prompt, entries in read_manifest(folder).by_prompt().items():
        for entry in entries:
            groups = sizes.setdefault(picture_size(Path(folder) / entry.file), {})
            groups.setdefault(prompt, []).append(entry)
    return {
        size: _samples(folder, groups, f" of {size_name(size)} pixels" if len(sizes) > 1 else "")
        for size, groups in sizes.items()
    }


def read_reference(folder: str | Path, samples: Samples, size: Size | None = None) -> Samples:
    """The teacher's images of the same prompts: those of the same seeds, or as many of other seeds.

    Other seeds do not favour a student that redraws the teacher's very images from the same noise. Seeds beyond those
    needed are ignored. size: of the images that are looked at, for samples that are one size of several; default: all.
    Raises ValueError like `read_samples`, when a prompt is missing on either side, when the folder has only some of the
    seeds, and when it has too few images.
    """
    groups = read_manifest(folder).by_prompt()
    if size is not None:
        groups = {
            prompt: [entry for entry in entries if picture_size(Path(folder) / entry.file) == size]
            for prompt, entries in groups.items()
        }
        groups = {prompt: entries for prompt, entries in groups.items() if entries}
        if not groups:
            raise ValueError(
                f"the reference must have images of the same sizes: {samples.folder} has some of {size_name(size)} "
                f"pixels (height x width), {folder} has none"
            )
    ours, theirs = set(samples.prompts), set(groups)
    for missing, where in ((ours - theirs, folder), (theirs - ours, samples.folder)):
        if missing:
            raise ValueError(
                f"the reference must have the same prompts: {len(missing)} missing in {where}, such as {min(missing)!r}"
            )
    shares = any(_have_seeds_in_common(samples.seeds[prompt], groups[prompt]) for prompt in samples.prompts)
    choose = _of_seeds if shares else _of_other_seeds
    return _samples(folder, {prompt: choose(groups[prompt], prompt, samples, folder) for prompt in samples.prompts})


def _have_seeds_in_common(seeds: list[int], entries: list[ImageEntry]) -> bool:
    """Whether any of the entries has one of the seeds."""
    return not set(seeds).isdisjoint(entry.seed for entry in entries)


def _samples(folder: str | Path, groups: dict[str, list[ImageEntry]], of_size: str = "") -> Samples:
    counts = {prompt: len(entries) for prompt, entries in groups.items()}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"{folder}: every prompt needs the same number of images{of_size}, "
            f"got {counts[few]} for {few!r} and {counts[many]} for {many!r}"
        )
    files = [Path(folder) / entry.file for entries in groups.values() for entry in entries]
    seeds = {prompt: [entry.seed for entry in entries] for prompt, entries in groups.items()}
    return Samples(Path(folder), list(groups), seeds, files)


def _of_seeds(entries: list[ImageEntry], prompt: str, samples: Samples, folder: str | Path) -> list[ImageEntry]:
    seeds = samples.seeds[prompt]
    wanted = [entry for entry in entries if entry.seed in seeds]
    if len(wanted) < len(seeds):
        raise ValueError(
            f"the reference must have all of the seeds or none of them: for {prompt!r} {samples.folder} has {seeds}, "
            f"{folder} has {[entry.seed for entry in entries]}"
        )
    return wanted


def _of_other_seeds(entries: list[ImageEntry], prompt: str, samples: Samples, folder: str | Path) -> list[ImageEntry]:
    number = samples.images_per_prompt
    if len(entries) < number:
        raise ValueError(
            f"the reference needs at least as many images: for {prompt!r} {samples.folder} has {number}, {folder} has "
            f"{len(entries)} of other seeds"
        )
    return entries[:number]
