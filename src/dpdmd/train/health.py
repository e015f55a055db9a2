"""Numbers that tell early whether a run is well, and the file they go to."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpdmd.files import write_text

SATURATED = 3.0


@torch.no_grad()
def sample_health(x0: Tensor) -> dict[str, Tensor]:
    """Scalars `mean`, `std` and `saturation` of the student's samples x0 (B, C, H, W).

    saturation: share of values with |x| > 3. Latents are scaled to about unit variance by every family, so this is
    the share beyond three standard deviations of the data; .0027 for a normal distribution.
    """
    x0 = x0.float()
    return {
        "mean": x0.mean(),
        "std": x0.std(correction=0),
        "saturation": (x0.abs() > SATURATED).float().mean(),
    }


def mean_of(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    """Key by key the mean over rows of equal keys, whose values are scalars on one device; read in one go."""
    values = torch.stack([torch.stack([value.float() for value in row.values()]) for row in rows])
    return dict(zip(rows[0], values.mean(dim=0).tolist(), strict=True))


class MetricsLog:
    """`metrics.jsonl`, one line per student update, or validation/scores.jsonl: appended and flushed at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; NaN and infinity, which JSON does not have, become null. Raises OSError when it cannot."""
        clean = {key: value if _is_json(value) else None for key, value in row.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise OSError(
                f"could not write {self.path}: {error.strerror}. The last checkpoint stays; make room, then go on with "
                "--resume"
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """All lines, of a file that is whole; [] when there is none."""
        return list(map(json.loads, self.path.read_text(encoding="utf-8").splitlines())) if self.path.exists() else []

    def cut_after(self, step: int) -> int:
        """Drop every line past `step`, and a last one that a killed run left unfinished.

        Returns the last step that the file had, 0 without any.
        """
        if not self.path.exists():
            return 0
        kept, last = [], 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            last = row["step"]
            if last <= step:
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        return last


def _is_json(value: Any) -> bool:
    return not isinstance(value, int | float) or math.isfinite(value)
