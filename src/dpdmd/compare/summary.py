"""From runs to arms: means over training seeds with intervals, also as a Markdown table."""

from statistics import stdev
from typing import Any

from dpdmd.compare.arms import Run
from dpdmd.compare.measure import RunMetrics
from dpdmd.evaluate.intervals import t_estimate
from dpdmd.evaluate.metrics import HEADLINE, METRICS, metric_of

SEEDS, PROMPTS = "training seeds", "prompts"

Summary = dict[str, Any]


def summarise(values: list[float | None], over_prompts: list[float] | None = None) -> Summary | None:
    """{"mean", "low", "high", "interval", "deviation", "values"} of one metric, given its value for each training seed.

    low, high: the 95 % interval by Student's t over seeds ("interval": "training seeds"), or for a single seed
    `over_prompts`, its bootstrap interval over prompts ("interval": "prompts"), if there is one. A run without the
    metric has the value None and is left out of the mean. Returns None when all are None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    estimate = t_estimate(known)
    summary: Summary = {"mean": estimate.value}
    if estimate.interval is not None:
        summary |= {"low": estimate.low, "high": estimate.high, "interval": SEEDS, "deviation": stdev(known)}
    elif over_prompts is not None:
        summary |= {"low": over_prompts[0], "high": over_prompts[1], "interval": PROMPTS}
    return summary | {"values": values}


def summarise_arms(runs: list[Run], measured: list[RunMetrics]) -> dict[str, dict[str, Summary]]:
    """{arm: {metric: summary}} of the metrics that each arm has, given what was measured of each run."""
    by_arm: dict[str, list[RunMetrics]] = {}
    for run, metrics in zip(runs, measured, strict=True):
        by_arm.setdefault(run.arm.name, []).append(metrics)
    return {name: summarise_runs(own) for name, own in by_arm.items()}


def summarise_runs(measured: list[RunMetrics]) -> dict[str, Summary]:
    """{metric: summary} of one arm, given what was measured of each of its runs; without metrics that no run has."""
    summaries = {}
    for key in (metric.key for metric in METRICS):
        having = [metrics for metrics in measured if metrics.get(key) is not None]
        intervals = [metrics["intervals"].get(key) for metrics in having if "intervals" in metrics]
        summary = summarise([metrics.get(key) for metrics in measured], intervals[0] if len(intervals) == 1 else None)
        if summary is not None:
            summaries[key] = summary
    return summaries


def table(arms: dict[str, dict[str, Summary]], keys: tuple[str, ...] = HEADLINE) -> str:
    """A Markdown table of means, a line for each arm; ± half the interval over seeds, [interval over prompts]."""

    def cell(summary: Summary | None) -> str:
        if summary is None:
            return "-"
        if "low" not in summary:
            return f"{summary['mean']:.3f}"
        if summary["interval"] == PROMPTS:
            return f"{summary['mean']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]"
        return f"{summary['mean']:.3f} ± {(summary['high'] - summary['low']) / 2:.3f}"

    def whole(summary: Summary | None, unit: float = 1) -> str:
        return "-" if summary is None else f"{summary['mean'] / unit:.0f}"

    lines = [f"| arm | {' | '.join(metric_of(key).heading for key in keys)} | seconds | MiB |"]
    lines.append("|---" * (len(keys) + 3) + "|")
    for name, arm in arms.items():
        cells = [cell(arm.get(key)) for key in keys]
        cells += [whole(arm.get("seconds")), whole(arm.get("peak_memory_bytes"), 2**20)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
