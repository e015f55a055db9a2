"""A folder of images and its manifest.json, which sampling writes and every metric and the report read."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from dpdmd.store.files import write_json
from dpdmd.store.names import did_you_mean
from dpdmd.store.pictures import pictures_in, visible
from dpdmd.store.state import State, read_state

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ImageEntry:
    """One image: its prompt and seed, which identify it, and its file relative to the folder."""

    prompt: str
    seed: int
    file: str


class ImageRow(State):
    """An `ImageEntry` in manifest.json."""

    prompt: str
    seed: int = Field(ge=0, lt=2**64)
    file: str = Field(pattern=r"^[^\x00]+$")


class ManifestFile(State):
    """manifest.json; further keys say how the images were made."""

    images: list[ImageRow]


@dataclass(frozen=True)
class Manifest:
    """The images of a folder; `info` says how they were made (model, num_inference_steps, guidance_scale, grid ...)."""

    images: list[ImageEntry]
    info: dict[str, Any] = field(default_factory=dict)

    def by_prompt(self) -> dict[str, list[ImageEntry]]:
        """The images of each prompt by rising seed; prompts in the order of their first appearance."""
        groups: dict[str, list[ImageEntry]] = {}
        for entry in self.images:
            groups.setdefault(entry.prompt, []).append(entry)
        return {prompt: sorted(entries, key=lambda entry: entry.seed) for prompt, entries in groups.items()}


def write_manifest(folder: str | Path, images: list[ImageEntry], info: dict[str, Any] | None = None) -> Manifest:
    """Write `folder`/manifest.json for images that are already there; returns the manifest.

    Raises ValueError like `read_manifest`, and when `info` has a key "images".
    """
    info = dict(info or {})
    if "images" in info:
        raise ValueError('info must not have a key "images": this is the key of the list of images')
    manifest = Manifest(list(images), info)
    _check(Path(folder), manifest)
    rows = [{"prompt": entry.prompt, "seed": entry.seed, "file": entry.file} for entry in manifest.images]
    write_json(Path(folder) / MANIFEST_NAME, {"images": rows, **info})
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder of images.

    A folder without manifest.json must have one sub-folder of images for each prompt, named after the prompt. The seed
    of an image is then its file name if all file names of the prompt are whole numbers, else its place among them in
    natural order (img_2 before img_10). Names that begin with a dot, and folders that systems make, are passed over.

    Raises ValueError for a folder that is missing or has no images; a manifest that is broken JSON or lacks a field; a
    listed file that is missing or outside the folder; and a file or a (prompt, seed) that is listed twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}{did_you_mean(folder)}")
    path = folder / MANIFEST_NAME
    manifest = _read(path) if path.exists() else _from_sub_folders(folder)
    _check(folder, manifest)
    return manifest


def _read(path: Path) -> Manifest:
    content = read_state(path, ManifestFile)
    images = [ImageEntry(row.prompt, row.seed, row.file) for row in content.images]
    return Manifest(images, dict(content.model_extra or {}))


def _from_sub_folders(folder: Path) -> Manifest:
    images = []
    for sub_folder in sorted(path for path in visible(folder.iterdir()) if path.is_dir()):
        files = pictures_in(sub_folder)
        stems = [path.stem for path in files]
        numbered = all(stem.isascii() and stem.isdigit() for stem in stems)
        for place, path in enumerate(files):
            seed = int(path.stem) if numbered else place
            images.append(ImageEntry(sub_folder.name, seed, f"{sub_folder.name}/{path.name}"))
    if not images:
        raise ValueError(
            f"{folder} has neither {MANIFEST_NAME} nor a sub-folder of images for each prompt; make such a folder with "
            "`dpdmd sample ... --out FOLDER`"
        )
    return Manifest(images)


def _check(folder: Path, manifest: Manifest) -> None:
    if not manifest.images:
        raise ValueError(f"{folder} lists no images")
    files: set[Path] = set()
    keys: set[tuple[str, int]] = set()
    for entry in manifest.images:
        # As it is written: a link inside of the folder is its owner's way to use an image of another place.
        path = folder / os.path.normpath(entry.file)
        if Path(entry.file).is_absolute() or ".." in path.relative_to(folder).parts:
            raise ValueError(f"{folder}: image file {entry.file!r} is not inside the folder")
        if not _is_file(path):
            raise ValueError(f"{folder}: listed image is missing: {entry.file}")
        if path in files:
            raise ValueError(f"{folder}: image {entry.file!r} is listed twice")
        if (entry.prompt, entry.seed) in keys:
            raise ValueError(f"{folder}: prompt {entry.prompt!r} with seed {entry.seed} is listed twice")
        files.add(path)
        keys.add((entry.prompt, entry.seed))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False
