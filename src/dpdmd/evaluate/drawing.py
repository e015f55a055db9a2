"""Draw a folder of images once, with any number of processes, and continue where it was interrupted."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.evaluate.manifest import MANIFEST_NAME, ImageEntry, Manifest, write_manifest
from dpdmd.store.files import make_folder, write_json
from dpdmd.store.leftovers import remove_leftovers
from dpdmd.store.png import write_png
from dpdmd.store.progress import tracked
from dpdmd.store.state import State, state_or_none

SETTINGS_FILE = "sampling.json"
# Names of settings left out, whose values are there as well.
DEFAULTS = "defaults"
# Does not make other images. A model that was moved is still the same: "identity" says whether it is.
HARMLESS = ("model", "loras", DEFAULTS)
PNG_END = bytes.fromhex("0000000049454e44ae426082")  # the chunk that ends every PNG
ADVICE = "choose another folder or remove this one"


class SamplingFile(State):
    """sampling.json; further keys are settings that the images depend on."""

    prompts: list[str]


class DrawnFile(State):
    """What is read again of the manifest of a folder: the seconds that its images took."""

    seconds: float = 0.0


Draw = Callable[[list[tuple[str, int]]], Iterable[Tensor]]


def draw_folder(
    out: str | Path,
    prompts: list[str],
    seeds: list[int],
    draw: Draw,
    *,
    settings: dict[str, Any],
    what: str,
    progress: bool = True,
) -> Manifest:
    """Draw the images of every prompt and seed that `out` lacks, then write and return the manifest.

    draw: from (prompt, seed) pairs to their images (3, H, W) in [-1, 1], one after the other. settings: everything that
    the images depend on; sampling.json keeps it. what: the label of the progress bar. Further prompts and seeds may be
    added to a folder. Under torchrun each process draws a share of the images, and the first one writes the manifest,
    whose "seconds" are those of the slowest process, summed over all calls.
    Raises ValueError for a folder with images made by other settings, OSError when it cannot be written to,
    FloatingPointError for an image that is not finite.
    """
    from dpdmd.distributed.processes import on_all_processes, on_main_process, rank_and_world_size

    out = Path(out)
    files = {(prompt, seed): f"{i:04d}-{seed:06d}.png" for i, prompt in enumerate(prompts) for seed in seeds}
    missing = on_main_process(lambda: _missing(out, prompts, files, settings))
    rank, number = rank_and_world_size()
    mine = missing[len(missing) * rank // number : len(missing) * (rank + 1) // number]
    started = time.perf_counter()
    images = draw(mine) if mine else []
    for key, image in tracked(zip(mine, images, strict=True), what, len(mine), unit="image", shown=progress):
        if not image.isfinite().all():
            raise FloatingPointError(
                f"the image of {key[0]!r} with seed {key[1]} has values that are not finite and is not written: the "
                "model's weights are broken, or overflow in the dtype that they are stored in"
            )
        write_png(out / files[key], image)
    seconds = max(on_all_processes(lambda: time.perf_counter() - started)) if missing else 0.0
    entries = [ImageEntry(prompt, seed, file) for (prompt, seed), file in files.items()]
    return on_main_process(lambda: write_manifest(out, entries, settings | {"seconds": _seconds_before(out) + seconds}))


def _missing(
    out: Path, prompts: list[str], files: dict[tuple[str, int], str], settings: dict[str, Any]
) -> list[tuple[str, int]]:
    """What has yet to be drawn; writes sampling.json before the first image."""
    make_folder(out, "--out")
    remove_leftovers(out)
    there = {path.name for path in out.glob("*.png") if _is_whole(path)}
    path = out / SETTINGS_FILE
    found = state_or_none(path, SamplingFile)
    known = {} if found is None else found.model_dump()
    if not known and there & set(files.values()):
        raise ValueError(f"{out} has images but no {SETTINGS_FILE} that says how they were made; {ADVICE}")
    if known:
        _refuse_other(out, known, prompts, settings)
    longer = max(known.get("prompts", []), prompts, key=len)
    write_json(path, settings | {"prompts": longer})
    return [key for key, file in files.items() if file not in there]


def _is_whole(path: Path) -> bool:
    """Whether a PNG has its end: a copy that was interrupted has not, and is drawn again."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(PNG_END), 0))
        return file.read() == PNG_END


def _refuse_other(out: Path, known: dict[str, Any], prompts: list[str], settings: dict[str, Any]) -> None:
    if known.get("identity") != settings.get("identity"):
        before, now = known.get("model"), settings.get("model")
        named = f"{before}, and these would be of {now}" if before != now else f"{now} before its files were changed"
        raise ValueError(f"{out} has images of {named}; {ADVICE}")
    for key, value in settings.items():
        if key not in HARMLESS and known.get(key) != value:
            raise ValueError(f"{out} has images made with {key} {known.get(key)!r}, not {value!r}; {ADVICE}")
    for before, now in zip(known.get("prompts", []), prompts, strict=False):
        if before != now:
            raise ValueError(f"{out} has images of the prompt {before!r} in place of {now!r}; {ADVICE}")


def _seconds_before(out: Path) -> float:
    found = state_or_none(out / MANIFEST_NAME, DrawnFile)
    return 0.0 if found is None else found.seconds
