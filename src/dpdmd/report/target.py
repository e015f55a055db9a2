"""The target region of a plot of diversity against quality: as varied as the teacher, and as good."""

from typing import TYPE_CHECKING

from dpdmd.report.colours import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In per cent of the teacher's diversity: as near as a prompt must be to count as "near the teacher".
NEAR = (80.0, 120.0)
EXPLANATION = (
    "The shaded region is the aim: as varied as the teacher (80 to 120 %) and no worse than it. Right of it a student "
    "varies more than its teacher, which is not better: its images differ from each other in another way."
)


def mark_target(axes: "Axes", lowest_quality: float) -> None:
    """Shade the region without moving the limits. lowest_quality: of the teacher, in the units of the axis."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low = max(lowest_quality, bottom)
    axes.fill_between(NEAR, low, max(top, low), color=INK, alpha=0.07, linewidth=0, zorder=0)
    axes.axvline(100, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
