"""Hand a trained student to stock diffusers: a pipeline folder with a card whose snippet samples it."""

import json
from pathlib import Path

from dpdmd.files import read_json, write_json, write_text
from dpdmd.models.load import STUDENT_FILE, load_sampler

CARD = """\
---
library_name: diffusers
base_model: {base}
tags: [text-to-image, distillation, few-step]
---
# {num_steps}-step student of {base}

Distilled by dpdmd, objective `{objective}`, {updates} student updates. Sample it without guidance, on the grid that it
was trained on (t = {grid}):

```python
{snippet}```
"""


def export_run(run: str | Path, out: str | Path) -> Path:
    """Write the student of a finished run as a pipeline folder that stock diffusers loads.

    Beside the pipeline: README.md, the model card with the snippet, and student.json, so that dpdmd knows the grid.
    Raises ValueError when `run` is no finished run or `out` exists.
    """
    run, out = Path(run), Path(out)
    if not (run / "student" / STUDENT_FILE).is_file():
        raise ValueError(f"{run} is no finished run: it has no student/{STUDENT_FILE}")
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder")
    info = read_json(run / "student" / STUDENT_FILE)
    sampler = load_sampler(str(run))
    snippet = sampler.adapter.export(sampler.network, sampler.grid, out)
    prompt = _example_prompt(run)
    card = CARD.format(
        base=info["base"],
        num_steps=sampler.grid.num_steps,
        objective=info["objective"],
        updates=info["updates"],
        grid=", ".join(f"{t:.4g}" for t in sampler.grid.times),
        snippet=snippet.replace("'{prompt}'", json.dumps(prompt)),
    )
    write_text(out / "README.md", card)
    write_json(out / STUDENT_FILE, info)
    return out


def _example_prompt(run: Path) -> str:
    """A prompt the card can show: the first that the run validated or was judged on, else a plain one."""
    manifest = run / "samples" / "manifest.json"
    return read_json(manifest)["images"][0]["prompt"] if manifest.is_file() else "a red circle"
