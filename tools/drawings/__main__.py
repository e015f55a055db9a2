"""Make the pictures of the world of drawings again: `python -m tools.drawings DIR` (needs `pip install resvg-py`)."""

import sys
from importlib.resources import files
from pathlib import Path

from tools.drawings.render import fetch, render

if len(sys.argv) != 2:
    sys.exit("usage: python -m tools.drawings DIR, where the archives of the sets are kept")
fetch(Path(sys.argv[1]))
render(Path(sys.argv[1]), Path(str(files("dpdmd.world.drawings"))))
