"""What one run scored, what it cost and how steadily it trained, as one dict of plain numbers."""

from statistics import median
from typing import Any

from dpdmd.compare.arms import Run
from dpdmd.compare.commands import CostFile, failure
from dpdmd.evaluate.metrics import HEADLINE
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.scores import quality
from dpdmd.evaluate.speed import speed_metrics
from dpdmd.models.student_file import STUDENT_FILE, StudentFile
from dpdmd.store.cache import cache_folder
from dpdmd.store.jsonl import read_rows
from dpdmd.store.progress import tracked
from dpdmd.store.state import read_state, state_or_none
from dpdmd.training.run.folder import ProvenanceFile, RunFolder

SPIKE, WINDOW, FEWEST = 5.0, 50, 10

RunMetrics = dict[str, Any]


def measure(runs: list[Run], reference: Run, *, features: str = "auto") -> list[RunMetrics]:
    """Score sampled runs against `reference`; writes metrics.json into each folder.

    Returns a dict for each run: the metrics of `evaluate_folder` without those per prompt (a headline metric that could
    not be measured is None), "quality", the contents of cost.json, the speed if it was timed and, for what was trained,
    `training_metrics`. A failed run has the last of these only.
    """
    measured = []
    for run in tracked(runs, "scoring", len(runs), unit="run"):
        metrics: RunMetrics = training_metrics(run) if run.arm.recipe else {}
        if failure(run) is None:
            metrics |= _scores(run, reference, features) | read_state(run.folder / "cost.json", CostFile).model_dump()
        measured.append(metrics)
    for run, metrics in zip(runs, measured, strict=True):
        if run is reference:
            metrics |= _own_speed(measured)
    return measured


def _own_speed(measured: list[RunMetrics]) -> RunMetrics:
    """The teacher's time per image, as it was measured with a student's."""
    key = "seconds_per_image"
    return next(({key: metrics[f"reference_{key}"]} for metrics in measured if f"reference_{key}" in metrics), {})


def _scores(run: Run, reference: Run, features: str) -> RunMetrics:
    metrics = evaluate_folder(
        run.folder / "samples",
        reference=reference.folder / "samples",
        features=features,
        out=run.folder / "metrics.json",
        cache=cache_folder("images"),
    )
    found: RunMetrics = dict.fromkeys(HEADLINE) | {key: value for key, value in metrics.items() if key != "per_prompt"}
    speed = speed_metrics(run.folder)
    found["intervals"] = {**found["intervals"], **speed.pop("intervals", {})}
    found |= speed
    estimate = quality(metrics)
    found["quality"] = estimate and estimate.value
    if estimate and estimate.interval:
        found["intervals"] = {**found["intervals"], "quality": estimate.interval}
    return found


def training_metrics(run: Run) -> dict[str, float | None]:
    """Cost and stability of a training, from its log, its provenance and its student.

    The keys are those of the groups COST and STABILITY in `evaluate.metrics`; "failed" is 1 or 0. "seconds_per_cycle"
    leaves out the first update, which prepares what later ones use. What an older version did not write is None.
    """
    folder = RunFolder(run.folder)
    log = read_rows(folder.metrics)
    seconds = [0.0, *(row["seconds"] for row in log if row.get("seconds") is not None)]
    counted = seconds[1:] if len(log) > 1 else seconds
    facts = state_or_none(folder.provenance, ProvenanceFile) or ProvenanceFile()
    has_student = (folder.student / STUDENT_FILE).is_file()
    extra = facts.extra_parameters
    return {
        "updates": len(log),
        "training_seconds": seconds[-1],
        "seconds_per_cycle": (counted[-1] - counted[0]) / (len(counted) - 1) if log else None,
        "forwards_per_update": facts.forwards_per_update,
        "backwards_per_update": facts.backwards_per_update,
        "extra_parameters": None if extra is None else sum(extra.values()),
        "training_memory_bytes": StudentFile.read(folder.student).peak_memory_bytes if has_student else None,
        "loss_spikes": _spikes(log, "loss/"),
        "grad_norm_spikes": _spikes(log, "grad_norm/"),
        "failed": float(failure(run) is not None),
    }


def num_spikes(values: list[float]) -> int:
    """How often a loss or gradient norm rises above SPIKE = 5 times its running median.

    The median is taken over the WINDOW = 50 values before, or over as many as there are, from FEWEST = 10 on. It
    follows a trend and is not moved by spikes. Consecutive values above the limit are one spike. A quantity that
    changes its sign has no usual size: 0.
    Why 5: in fifteen runs on the built-in teacher (benchmarks/collapse.py) all losses and the gradient norm of the fake
    score stayed below 2 times their median, while the gradient norm of the student reached 27 times.
    """
    if any(value < 0 for value in values):
        return 0
    count, was_above = 0, False
    for i in range(FEWEST, len(values)):
        is_above = values[i] > SPIKE * median(values[max(0, i - WINDOW) : i])
        count += is_above and not was_above
        was_above = is_above
    return count


def _spikes(log: list[dict[str, Any]], prefix: str) -> int:
    """Spikes of all logged quantities whose names start with `prefix`."""
    names = {key for row in log for key in row if key.startswith(prefix)}
    return sum(num_spikes([row[name] for row in log if row.get(name) is not None]) for name in names)
