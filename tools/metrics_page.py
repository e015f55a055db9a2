"""Write the tables of metrics in docs/ from `dpdmd.evaluate.metrics`.

    python -m tools.metrics_page

Rewrites the text between `<!-- metrics GROUP -->` and `<!-- end -->`; nothing else in these pages is generated.
"""

import re
from pathlib import Path

from dpdmd.evaluate.metrics import GROUPS
from dpdmd.store.files import write_text

PAGES = (Path("docs", "evaluation.md"), Path("docs", "comparing.md"))


def table(group: str) -> str:
    """The metrics of a group as a Markdown table. Raises KeyError for an unknown group."""
    lines = ["| metric | on pages | meaning | better |", "|---|---|---|---|"]
    for metric in GROUPS[group]:
        better = metric.better.removesuffix(" is better")
        lines.append(f"| `{metric.key}` | {metric.heading} | {metric.meaning} | {better} |")
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page with its tables brought up to date."""

    def section(match: re.Match[str]) -> str:
        return f"<!-- metrics {match[1]} -->\n\n{table(match[1])}\n\n<!-- end -->"

    return re.sub(r"<!-- metrics (.+?) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8")))
    print(f"written: {', '.join(map(str, PAGES))}")


if __name__ == "__main__":
    main()
