"""Names of points in a plot, placed so that they cover little."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dpdmd.report.colours import plain, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Point = tuple[float, float]


class Labels:
    """Names next to points, each where it covers the fewest lines, points and earlier names and stays inside."""

    def __init__(self, axes: "Axes"):
        self.axes = axes
        self.taken: list[Bbox] = []
        self.ink = np.empty((0, 2))  # pixels, in display coordinates

    def avoid(self, line: "list[Point] | tuple[Point, ...]") -> None:
        """Keep names off the line through these points."""
        if not line:
            return
        corners = self.axes.transData.transform(line)
        pieces = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)) for a, b in pairwise(corners)]
        self.ink = np.concatenate([self.ink, corners, *pieces])

    def place(self, text: str, point: Point, colour: str, *, bold: bool = False) -> None:
        """Write `text` next to `point`, with a line to it when it had to go far; nothing for a point outside."""
        if not self.axes.bbox.contains(*self.axes.transData.transform(point)):
            return
        note = self.axes.annotate(
            plain(text), point, xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            color=shade(colour), fontsize=9 if bold else 8.5, fontweight="bold" if bold else "normal", zorder=6,
        )  # fmt: skip
        note.set_in_layout(False)  # a name must not shrink the axes
        here = note.get_window_extent()
        dx, dy, cost = min(_shifts(here, 9 if bold else 7), key=lambda s: self._cost(here.translated(*s[:2])) + s[2])
        unit = 72 / self.axes.figure.dpi
        note.set_position((dx * unit, dy * unit))
        if cost and bold:
            end = (_towards_zero(dx, here.width / 2) * unit, _towards_zero(dy, here.height / 2) * unit)
            self.axes.annotate(
                "", point, xytext=end, textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
        self.taken.append(here.translated(dx, dy))

    def _cost(self, box: "Bbox") -> float:
        frame, margin = self.axes.bbox, 3
        corner, far = np.array([box.x0, box.y0]) - margin, np.array([box.x1, box.y1]) + margin
        covered = int(((self.ink > corner) & (self.ink < far)).all(axis=1).sum())
        leaves = not (frame.contains(*corner) and frame.contains(*far))
        return 8 * covered + 200 * sum(box.padded(margin).overlaps(other) for other in self.taken) + 400 * leaves


def _shifts(box: "Bbox", gap: float) -> list[tuple[float, float, float]]:
    """(dx, dy, cost) of places around a point, in pixels: rings, of which the nearest costs nothing."""
    rings = [(gap * (1 + 1.3 * ring), 12.0 * ring) for ring in range(5)]
    ways = [(math.cos(math.pi * k / 12), math.sin(math.pi * k / 12)) for k in range(24)]

    def offset(way: float, radius: float, extent: float) -> float:
        # At a diagonal place a corner of the box is nearest to the point, else the middle of an edge.
        return way * radius + extent / 2 * max(-1.0, min(1.0, 1.5 * way))

    return [
        (offset(x, radius, box.width), offset(y, radius, box.height), cost) for radius, cost in rings for x, y in ways
    ]


def _towards_zero(value: float, step: float) -> float:
    return math.copysign(max(abs(value) - step, 0.0), value)
