"""Fetch the sets and render their drawings into the sheet and the index that the package ships."""

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dpdmd.store.files import atomic_path, write_json
from tools.drawings.sets import REGISTRY, SETS, DrawingSet
from tools.drawings.things import NOT_THESE, THINGS

SIZE = 32
RENDERED = 256  # pixels a side before the picture is made smaller
MARGIN = 0.04  # of the width, on each side
FEWEST_HANDS = 6
# Two drawings of one thing that differ by less (root mean square over values in [0, 1]) count as one.
SAME = 0.04
MIRRORED = {"rotate", "hFlip", "vFlip"}


def fetch(folder: Path) -> None:
    """Download the archives of all sets. Raises ValueError for one that is not what `SETS` records."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in SETS:
        path = archive(folder, one)
        if not path.exists():
            url = REGISTRY.format(name=one.name, version=one.version)
            with urllib.request.urlopen(url, timeout=120) as answer, atomic_path(path) as temporary:
                temporary.write_bytes(answer.read())
        require_intact(path, one)


def archive(folder: Path, one: DrawingSet) -> Path:
    """Where the archive of a set lies; `npm pack @iconify-json/NAME@VERSION` gives it this name too."""
    return folder / f"iconify-json-{one.name}-{one.version}.tgz"


def require_intact(path: Path, one: DrawingSet) -> None:
    """Raises ValueError unless the archive has the recorded hash."""
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != one.integrity:
        raise ValueError(f"{path} is not version {one.version} of {one.name} as recorded; delete it and fetch it again")


def render(folder: Path, out: Path) -> None:
    """Write pictures.webp, a row of `SIZE` pixels per thing and a column per hand, lossless, and drawings.json.

    folder: with the archives. Things that fewer than FEWEST_HANDS drew are left out.
    Raises ValueError for an archive that is not the recorded one.
    """
    icons = []
    for one in SETS:
        require_intact(archive(folder, one), one)
        with tarfile.open(archive(folder, one)) as packed:
            file = packed.extractfile("package/icons.json")
            assert file is not None, "every package of Iconify has this file"
            icons.append(json.load(file))
    rows, things = [], []
    for group, entries in THINGS.items():
        for entry in entries.split():
            icon, _, name = entry.partition("=")
            drawn = _hands(icons, icon)
            if len(drawn) < FEWEST_HANDS:
                print(f"left out: {icon}, of {len(drawn)} hands")
                continue
            row = np.full((SIZE, len(SETS) * SIZE, 3), 255, np.uint8)
            for hand, picture in drawn.items():
                row[:, hand * SIZE : (hand + 1) * SIZE] = picture
            rows.append(row)
            things.append({"name": (name or icon).replace("-", " "), "group": group, "hands": list(drawn)})
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "pictures.webp") as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="WEBP", lossless=True, quality=100, method=6)
    write_json(out / "drawings.json", {"hands": [one.name for one in SETS], "size": SIZE, "things": things})
    print(f"{sum(len(thing['hands']) for thing in things)} drawings of {len(things)} things")


def _hands(icons: list[dict[str, Any]], name: str) -> dict[int, np.ndarray]:
    """The different drawings of a thing, (SIZE, SIZE, 3) each, by hand."""
    drawn: dict[int, np.ndarray] = {}
    for hand, one in enumerate(icons):
        icon = _icon(one, name)
        if icon is None or (name, SETS[hand].name) in NOT_THESE:
            continue
        picture = _picture(one, icon)
        if all(_distance(picture, other) >= SAME for other in drawn.values()):
            drawn[hand] = picture
    return drawn


def _distance(picture: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((picture.astype(float) - other) / 255) ** 2)))


def _icon(one: dict[str, Any], name: str) -> dict[str, Any] | None:
    """An icon by name or alias; None if the set has none, or only a mirrored or turned one."""
    if name in one["icons"]:
        return one["icons"][name]
    alias = one.get("aliases", {}).get(name)
    if alias is None or MIRRORED & set(alias):
        return None
    parent = _icon(one, alias["parent"])
    return parent and {**parent, **{key: value for key, value in alias.items() if key != "parent"}}


def _picture(one: dict[str, Any], icon: dict[str, Any]) -> np.ndarray:
    """An icon on white, (SIZE, SIZE, 3) uint8."""
    import resvg_py

    width, height, left, top = (
        icon.get(key, one.get(key, default))
        for key, default in (("width", 16), ("height", 16), ("left", 0), ("top", 0))
    )
    margin = MARGIN * width
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left - margin} {top - margin} {width + 2 * margin} {height + 2 * margin}" '
        f'width="{RENDERED}" height="{RENDERED}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGB", drawn.size, "white")
    page.paste(drawn, (0, 0), drawn)
    return np.asarray(page.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
