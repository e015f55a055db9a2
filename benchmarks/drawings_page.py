"""What the documentation shows of the drawings: the scores of their teacher and of its students.

    python -m benchmarks.drawings_page

Reads the teacher's scores.json and benchmarks/results/drawings.json; rewrites the text between the markers
`<!-- drawings NAME -->` and `<!-- end -->`. Nothing in the tables is written by hand.
"""

from pathlib import Path
from typing import Any

from benchmarks.drawings import CHANGED, FIRST_SEEDS, LABELS, RESULTS, TEACHER
from benchmarks.pareto_page import cell, fill, markdown
from dpdmd.compare.summary import PROMPTS, summarise, summarise_runs
from dpdmd.models.load import built_in_teacher
from dpdmd.store.files import read_json, write_text

PAGES = Path("docs", "world.md"), Path("docs", "results.md")
TEACHER_COLUMNS = {"named_accuracy": "right", "validity": "clean drawings", "modes_share": "share of the modes"}
COLUMNS = {
    "diversity_share": ("diversity kept", 2),
    "named_accuracy": ("right", 3),
    "validity": ("clean drawings", 3),
    "modes_share": ("share of the modes", 3),
    "total_variation_reference": ("total variation to the teacher", 3),
    "frechet": ("Frechet distance", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
}


def teacher_table(scores: dict[str, dict[str, Any]]) -> str:
    """The teacher's scores over guidance, with intervals over prompts where there are some."""
    lines = []
    for scale, metrics in scores.items():
        cells = []
        for key in TEACHER_COLUMNS:
            low, high = metrics["intervals"].get(key, (0.0, 0.0))
            cells.append(cell({"mean": metrics[key], "low": low, "high": high, "interval": PROMPTS}, 3))
        lines.append([scale, *cells])
    return markdown(["guidance", *TEACHER_COLUMNS.values()], lines)


def students_table(rows: list[dict[str, Any]], labels: dict[str, str] = LABELS) -> str:
    """All of these arms that have results."""
    lines = []
    for name, label in labels.items():
        if own := [row for row in rows if row["arm"] == name]:
            summary = summarise_runs([row["metrics"] | {"intervals": row["intervals"]} for row in own])
            summary["modes_share"] = summarise([row["metrics"]["modes_share"] for row in own])
            seeds = "" if name in FIRST_SEEDS else str(len(own))
            lines.append([label, seeds, *(cell(summary.get(key), digits) for key, (_, digits) in COLUMNS.items())])
    return markdown(["model", "seeds", *(heading for heading, _ in COLUMNS.values())], lines)


def settings_table(rows: list[dict[str, Any]]) -> str:
    """DP-DMD's students of the first training seed: by the settings of scenes, and by changes of them."""
    changes = {
        name: ", ".join(f"`{key}` = {value}" for key, value in change.items()) for name, change in CHANGED.items()
    }
    labels = {"dp_dmd_of_scenes": "the settings for scenes"} | changes | {"dp_dmd": "the recipe: the first two changes"}
    return students_table([row for row in rows if row["seed"] == 0], labels)


def main() -> None:
    rows = read_json(RESULTS)["rows"]
    texts = {
        "teacher": teacher_table(read_json(built_in_teacher(TEACHER) / "scores.json")),
        "students": students_table(rows),
        "settings": settings_table(rows),
    }
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8"), texts, "drawings"))
    print(f"written: {', '.join(map(str, PAGES))}")


if __name__ == "__main__":
    main()
