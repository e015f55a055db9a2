"""Fail when a built page would load anything from the network: `python docs/check_offline.py docs/_build/html`."""

import re
import sys
from pathlib import Path

# What a browser fetches by itself; links that a reader follows are not among it.
LOADS = (
    re.compile(r"<(?:script|img|iframe|source|audio|video|embed)\b[^>]*?\bsrc\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)"),
    re.compile(
        r"<link\b(?![^>]*\brel=[\"']?(?:canonical|next|prev|author))[^>]*?\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    ),
    re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)"),
)


def loads(text: str) -> list[str]:
    """Addresses that a page or style sheet loads from elsewhere."""
    return [match[1] for pattern in LOADS for match in pattern.finditer(text)]


def main(folder: str) -> None:
    """Exit code 1 and one line for each address when there is any."""
    pages = [path for kind in ("*.html", "*.css") for path in sorted(Path(folder).rglob(kind))]
    found = [(page, address) for page in pages for address in loads(page.read_text(encoding="utf-8"))]
    for page, address in found:
        print(f"{page} loads {address}", file=sys.stderr)
    if found or not pages:
        sys.exit(f"{folder}: {len(found)} loads from the network in {len(pages)} pages, expected 0")
    print(f"{folder}: {len(pages)} pages and style sheets, nothing is loaded from the network")


if __name__ == "__main__":
    main(sys.argv[1])
