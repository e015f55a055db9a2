"""Tables of a report: a row per arm, a column per figure, what each means in one line."""

from dataclasses import dataclass

from dpdmd.report.runs import ArmReport
from dpdmd.report.summary import duration, percent


@dataclass(frozen=True)
class Column:
    """One column of a table: metric, heading, what it means in one line, and how its numbers are written."""

    key: str
    heading: str
    explanation: str
    style: str


@dataclass(frozen=True)
class Table:
    """Heading, columns, and {row of the report: a figure and its interval, as texts, for each column}."""

    heading: str
    columns: list[Column]
    cells: dict[str, list[tuple[str, str]]]
    notes: list[str]


NUMBERS = (
    Column("num_inference_steps", "steps", "Network steps to draw one image.", "count"),
    Column(
        "diversity_share",
        "diversity kept",
        "Diversity as a share of the teacher's on the same prompts and seeds; 100 % is as diverse as the teacher.",
        "percent",
    ),
    Column(
        "prompts_near_reference",
        "prompts near",
        "Share of prompts whose diversity is within 20 % of the teacher's. 100 % kept in the mean may hide that some "
        "prompts collapse while others wander off.",
        "percent",
    ),
    Column(
        "diversity",
        "diversity",
        "How different the images of one prompt are: 1 minus the mean cosine similarity of their features, "
        "over all pairs; 0 means all alike.",
        "decimal",
    ),
    Column(
        "named_accuracy",
        "prompt followed",
        "Share of what the prompts name (shape, colour, size, background) that is drawn right.",
        "percent",
    ),
    Column("validity", "valid", "Share of images that are a clean scene of the built-in world.", "percent"),
    Column(
        "quality",
        "quality",
        "Valid times prompt followed, in the mean over prompts: about the share of images that are clean and as "
        "prompted. For other images their precision, the share that is near the teacher's.",
        "percent",
    ),
    Column(
        "effective_modes",
        "effective modes",
        "How many different values a factor that the prompt leaves open takes, weighted by how evenly (exponential of "
        "the entropy, mean over factors); read from the images themselves, so overdriven colours do not raise it.",
        "decimal1",
    ),
    Column(
        "total_variation_true",
        "off the truth",
        "Distance (total variation, 0 to 1) of what is left open from the world's own distribution; few images "
        "alone give some.",
        "decimal",
    ),
    Column(
        "total_variation_reference",
        "off the teacher",
        "The same distance to what the teacher leaves open: a student can be diverse and still draw other things.",
        "decimal",
    ),
    Column("frechet", "Frechet", "Distance of all images to the teacher's in feature space; 0 is the same.", "decimal"),
    Column(
        "saturation",
        "saturated",
        "Share of colour values that are exactly 0 or 255: above the teacher's, colours are overdriven.",
        "percent1",
    ),
    Column("seconds", "time", "Wall-clock time of this row, training included where it was trained.", "duration"),
    Column("peak_memory_bytes", "memory", "Largest memory use while the row was made.", "bytes"),
)
COST = (
    Column("updates", "updates", "Student updates that the budget allowed.", "count"),
    Column("training_seconds", "training", "Training time of one run, without checkpoints and sampling.", "duration"),
    Column(
        "seconds_per_update",
        "per update",
        "Time of one cycle (the fake score's updates and one of the student), the median over a run.",
        "seconds",
    ),
    Column(
        "forwards_per_update", "forward", "Network calls on one sample in one cycle; a guided call is two.", "count"
    ),
    Column("backwards_per_update", "backward", "Of them, those with a backward pass.", "count"),
    Column(
        "extra_parameters",
        "extra parameters",
        "Parameters that training needs beside teacher, student and fake score: a discriminator, a perceptual "
        "backbone.",
        "parameters",
    ),
    Column(
        "training_memory_bytes", "memory", "Largest memory use of a training: the GPU's where there is one.", "bytes"
    ),
)
STABILITY = (
    Column(
        "diversity_share_deviation",
        "spread of diversity kept",
        "Standard deviation over the training seeds.",
        "percent1",
    ),
    Column("quality_deviation", "spread of quality", "The same of the quality.", "percent1"),
    Column(
        "loss_spikes",
        "loss spikes",
        "How often a loss leaves its usual size in a run: above 5 times the median of the 50 updates before.",
        "tenths",
    ),
    Column("grad_norm_spikes", "gradient spikes", "The same of gradient norms, before they are clipped.", "tenths"),
    Column(
        "failed_runs",
        "failed runs",
        "Runs that ended because a loss or gradient was no longer finite; no mean has them in it.",
        "count",
    ),
)


def make_table(
    heading: str, columns: tuple[Column, ...], arms: dict[str, ArmReport], notes: list[str] | None = None
) -> Table | None:
    """The columns and rows that have a number; None when there are none."""
    shown = [column for column in columns if any(_value(arm, column.key) is not None for arm in arms.values())]
    cells = {name: [_cell(arm, column) for column in shown] for name, arm in arms.items()}
    cells = {name: row for name, row in cells.items() if any(text for text, _ in row)}
    return Table(heading, shown, cells, notes or []) if shown else None


def _value(arm: ArmReport, key: str) -> float | None:
    value = arm.metrics.get(key)
    if value is None and arm.images and key == "num_inference_steps":
        value = arm.images.info.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cell(arm: ArmReport, column: Column) -> tuple[str, str]:
    """The figure and its interval as texts."""
    value = _value(arm, column.key)
    if value is None:
        return "", ""
    interval = arm.metrics.get("intervals", {}).get(column.key)
    if not interval or interval[0] == interval[1]:
        return _written(value, column.style), ""
    low, high = (_written(bound, column.style).removesuffix(" %") for bound in interval)
    return _written(value, column.style), f"{low} – {high}"


def _written(value: float, style: str) -> str:
    writers = {
        "count": lambda: f"{value:,.0f}" if value == round(value) else f"{value:,.1f}",
        "percent": lambda: percent(value),
        "percent1": lambda: f"{100 * value:.1f} %",
        "decimal": lambda: f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}",
        "tenths": lambda: f"{value:.1f}",
        "decimal1": lambda: f"{value:.2f}",
        "seconds": lambda: f"{value:.2f} s",
        "duration": lambda: duration(value),
        "parameters": lambda: f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,.0f}",
        "bytes": lambda: f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB",
    }
    return writers[style]()
