"""The table of docs/performance.md that `benchmarks.full_size` fills: one row for each phase of each family."""

from pathlib import Path
from typing import Any

from benchmarks.pareto_page import fill, markdown
from dpdmd.store.files import write_text

PAGE = Path("docs", "performance.md")
GIB = 2**30
LABELS = {
    "write": "random weights written",
    "plan": "plan",
    "load": "network loaded",
    "update": "one update",
    "checkpoint": "checkpoint, student",
    "resume": "resumed",
    "sample": "one image",
    "export": "export, merged",
    "export_lora": "export, LoRA",
}
HEADER = ["model", "phase", "seconds", "resident, GiB", "without libraries", "counted", "ratio", "written, GiB"]


def sections(results: dict[str, Any]) -> dict[str, str]:
    """{marker: text} of the page."""
    rows = [row for found in sorted(results.values(), key=_parameters) for row in _rows(found)]
    return {"phases": markdown(HEADER, rows), "hashing": _hashing(results)}


def fill_page(page: Path, results: dict[str, Any]) -> None:
    """Write the results between the markers of the page."""
    write_text(page, fill(page.read_text(encoding="utf-8"), sections(results), marker="full_size"))


def _parameters(found: dict[str, Any]) -> int:
    return found["parameters"]


def _name(found: dict[str, Any]) -> str:
    texts = ", with text encoders" if found["texts"] else ""
    return f"{found['model']}, {found['parameters'] / 1e9:.2f} x 10^9{texts}"


def _rows(found: dict[str, Any]) -> list[list[str]]:
    name = _name(found)
    if "not_run" in found:
        needed, available = (found["not_run"][key] / GIB for key in ("needed", "available"))
        told = f"not run: needs {needed:.1f} GiB, {available:.1f} GiB were free"
        return [[name, told, *[""] * (len(HEADER) - 2)]]
    rows = []
    for key, label in LABELS.items():
        if key in found["phases"]:
            rows.append([name if not rows else "", label, *_cells(found["phases"][key], found["planned"].get(key))])
    if "failed" in found:
        rows.append(["", f"{LABELS[found['failed']]}: failed", *[""] * (len(HEADER) - 2)])
    return rows


def _cells(phase: dict[str, Any], planned: int | None) -> list[str]:
    peak, own = phase.get("peak"), None
    if peak is not None:
        own = peak - phase["libraries"]
    ratio = "" if own is None or planned is None else f"{own / planned:.2f}"
    return [f"{phase['seconds']:.0f}", _gib(peak), _gib(own), _gib(planned), ratio, _gib(phase.get("written"), 3)]


def _gib(size: int | None, digits: int = 2) -> str:
    return "" if size is None else f"{size / GIB:.{digits}f}"


def _hashing(results: dict[str, Any]) -> str:
    rows = []
    for found in sorted(results.values(), key=_parameters):
        if "load" in found.get("phases", {}):
            load = found["phases"]["load"]
            size, seconds = load["hash_bytes"], load["hash_seconds"]
            rows.append([_name(found), _gib(size), f"{seconds:.1f}", f"{size / 2**20 / seconds:.0f}"])
    return markdown(["model", "GiB", "seconds", "MiB per second"], rows)
