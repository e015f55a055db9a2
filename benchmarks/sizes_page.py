"""The table of students of several sizes in docs/results.md.

    python -m benchmarks.sizes_page

Reads benchmarks/results/sizes.json; rewrites the text between `<!-- sizes students -->` and `<!-- end -->`.
"""

from pathlib import Path

from benchmarks.pareto_page import cell, fill, markdown
from benchmarks.sizes import ALONE, RESULTS, TOGETHER
from dpdmd.compare.summary import Summary, summarise
from dpdmd.store.files import read_json, write_text

PAGE = Path("docs", "results.md")
COLUMNS = {  # heading and digits
    "latent_diversity_share": ("diversity kept", 2),
    "clean": ("clean images", 3),
    "named_right": ("right", 3),
    "latent_distance": ("latent distance", 2),
    "agreement": ("agreement with the teacher", 3),
}
Scores = dict[str, float]


def differences(of_size: dict[str, list[Scores]]) -> list[Scores]:
    """The student of three sizes minus the student of this size, seed by seed."""
    pairs = zip(of_size[TOGETHER], of_size[ALONE], strict=True)
    return [{key: together[key] - alone[key] for key in COLUMNS} for together, alone in pairs]


def summaries(scores: list[Scores]) -> dict[str, Summary | None]:
    """{column: mean and interval over seeds}."""
    return {key: summarise([one.get(key) for one in scores]) for key in COLUMNS}


def table(rows: dict[str, dict[str, list[Scores]]]) -> str:
    """Of each size: the students, their paired difference, and what can be reached."""
    lines = []
    for size, of_size in rows.items():
        shown = {name: of_size[name] for name in (TOGETHER, ALONE)}
        shown |= {"difference of the two": differences(of_size)}
        shown |= {name: scores for name, scores in of_size.items() if name not in shown}
        for name, scores in shown.items():
            found = summaries(scores)
            cells = (cell(found[key], digits) for key, (_, digits) in COLUMNS.items())
            lines.append([size.replace("x", " x "), name, *cells])
    return markdown(["size", "model", *(heading for heading, _ in COLUMNS.values())], lines)


def main() -> None:
    texts = {"students": table(read_json(RESULTS)["rows"])}
    write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), texts, "sizes"))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
