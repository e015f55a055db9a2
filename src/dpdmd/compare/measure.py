"""What one run scored, what it cost and how steadily it trained: one dict of plain numbers."""

from statistics import median
from typing import Any

from tqdm import tqdm

from dpdmd.compare.arms import Run
from dpdmd.compare.commands import failure
from dpdmd.evaluate.metrics import HEADLINE
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.scores import quality
from dpdmd.report.runs import read_log
from dpdmd.store.cache import default_folder
from dpdmd.store.files import read_json
from dpdmd.training.run.folder import RunFolder

SPIKE, WINDOW, FEWEST = 5.0, 50, 10

Row = dict[str, Any]


def measure(runs: list[Run], reference: Run, *, features: str = "auto") -> list[Row]:
    """Score runs that have been sampled against `reference`; writes metrics.json into each folder.

    Returns a row for each: the metrics of `evaluate_folder` without those per prompt (a headline that cannot be had,
    for want of a valid image, say, is None), "quality", cost.json and, of what was trained, `training_figures`. The row
    of a failed run holds the last alone.
    """
    rows = []
    for run in tqdm(runs, desc="scoring", unit="run"):
        row: Row = training_figures(run) if run.arm.recipe else {}
        if failure(run) is None:
            row |= _scores(run, reference, features) | read_json(run.folder / "cost.json")
        rows.append(row)
    return rows


def _scores(run: Run, reference: Run, features: str) -> Row:
    metrics = evaluate_folder(
        run.folder / "samples",
        reference=reference.folder / "samples",
        features=features,
        out=run.folder / "metrics.json",
        cache=default_folder(),
    )
    row = dict.fromkeys(HEADLINE) | {key: value for key, value in metrics.items() if key != "per_prompt"}
    estimate = quality(metrics)
    row["quality"] = estimate and estimate.value
    if estimate and estimate.interval:
        row["intervals"] = {**row["intervals"], "quality": estimate.interval}
    return row


def training_figures(run: Run) -> dict[str, float | None]:
    """Costs and steadiness of a training, from its log, its provenance and its student.

    "updates", "training_seconds", "seconds_per_cycle" (mean over all updates but the first, which makes what later ones
    use), "forwards_per_update", "backwards_per_update" (network calls per sample), "extra_parameters" (of networks
    beside teacher, student and fake score), "training_memory_bytes", "loss_spikes", "grad_norm_spikes" (see
    `num_spikes`), "failed" (1 or 0).
    """
    folder = RunFolder(run.folder)
    log = read_log(folder.metrics)
    seconds = [0.0, *(row["seconds"] for row in log)]
    counted = seconds[1:] if len(log) > 1 else seconds
    facts = read_json(folder.provenance) if folder.provenance.exists() else {}
    student = folder.student / "student.json"
    extra = facts.get("extra_parameters")
    return {
        "updates": len(log),
        "training_seconds": seconds[-1],
        "seconds_per_cycle": (counted[-1] - counted[0]) / (len(counted) - 1) if log else None,
        "forwards_per_update": facts.get("forwards_per_update"),
        "backwards_per_update": facts.get("backwards_per_update"),
        "extra_parameters": None if extra is None else sum(extra.values()),
        "training_memory_bytes": read_json(student)["peak_memory_bytes"] if student.exists() else None,
        "loss_spikes": _spikes(log, "loss/"),
        "grad_norm_spikes": _spikes(log, "grad_norm/"),
        "failed": float(failure(run) is not None),
    }


def num_spikes(values: list[float]) -> int:
    """How often a loss or gradient norm leaves its usual size: is above SPIKE = 5 times its running median.

    The running median is that of the WINDOW = 50 values before it, or of as many as there are, from FEWEST = 10 on; it
    follows a trend and is not moved by the spikes themselves. Values above it in a row are one spike. Why 5: in fifteen
    runs on the built-in teacher (benchmarks/collapse.py) all losses, and the fake score's gradient norm, stayed below 2
    times their median from batch to batch, while the student's gradient norm left it by up to 27 times: 5 lies clear of
    the one and finds the other. A quantity that changes its sign (a generator's hinge loss) has no usual size: 0.
    """
    if any(value < 0 for value in values):
        return 0
    count, was_above = 0, False
    for i in range(FEWEST, len(values)):
        is_above = values[i] > SPIKE * median(values[max(0, i - WINDOW) : i])
        count += is_above and not was_above
        was_above = is_above
    return count


def _spikes(log: list[Row], prefix: str) -> int:
    """Spikes of all quantities of the log whose names begin with `prefix`."""
    names = {key for row in log for key in row if key.startswith(prefix)}
    return sum(num_spikes([row[name] for row in log if row.get(name) is not None]) for name in names)
