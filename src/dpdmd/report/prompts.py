"""The table of prompts: every metric that is known for each prompt and arm."""

from dataclasses import asdict
from typing import Any

from dpdmd.evaluate.metrics import METRICS, REFERENCE, metric_of
from dpdmd.evaluate.words import scale_of
from dpdmd.report.galleries import deciding_arm
from dpdmd.report.runs import ArmReport, is_number, per_prompt, shares_of

Values = dict[str, dict[str, dict[str, float]]]


def prompt_data(arms: dict[str, ArmReport], colours: dict[str, str]) -> dict[str, Any] | None:
    """What the page's table is made from; None when no arm has metrics per prompt.

    {"prompts": [...], "arms": [{"label", "colour"}], "metrics": [a Metric as a dict, with "values": a list for each arm
    of a number or None for each prompt, and "scale", "digits" and "unit" that they are written with]}. The page starts
    with the first metric. "decides" is the place of the arm by which prompts are sorted at first.
    """
    values = prompt_values(arms)
    if not values:
        return None
    prompts = list(dict.fromkeys(row["prompt"] for arm in arms.values() for row in per_prompt(arm.metrics)))
    shown = [name for name in arms if any(name in of_arm for of_arm in values.values())]
    decides = deciding_arm(arms)
    metrics = []
    for key, of_arm in values.items():
        name, _, own = key.rpartition(": ")
        metric = metric_of(own)
        heading = f"{metric.heading}, by {name}" if name else metric.heading
        numbers = [[_short(of_arm.get(arm, {}).get(prompt)) for prompt in prompts] for arm in shown]
        largest = max((abs(value) for of in numbers for value in of if value is not None), default=0.0)
        scale, digits, unit = scale_of(metric.style, largest)
        how = {"scale": scale, "digits": digits, "unit": unit}
        metrics.append(asdict(metric) | {"key": key, "heading": heading, "values": numbers} | how)
    return {
        "prompts": prompts,
        "arms": [{"label": arms[name].label, "colour": colours[name]} for name in shown],
        "metrics": metrics,
        "decides": next((i for i, name in enumerate(shown) if arms[name] is decides), 0),
    }


def prompt_table_rows(arms: dict[str, ArmReport]) -> list[dict[str, Any]]:
    """The table as rows of a CSV file, one for each prompt and arm, unrounded."""
    values = prompt_values(arms)
    prompts = list(dict.fromkeys(row["prompt"] for arm in arms.values() for row in per_prompt(arm.metrics)))
    rows = []
    for prompt in prompts:
        for name, arm in arms.items():
            own = {key: of_arm[name][prompt] for key, of_arm in values.items() if prompt in of_arm.get(name, {})}
            if own:
                rows.append({"prompt": prompt, "arm": arm.label} | own)
    return rows


def prompt_values(arms: dict[str, ArmReport]) -> Values:
    """{metric: {arm: {prompt: number}}}: known metrics in the order of the table of metrics, then others, then those
    of further feature networks, called "NETWORK: metric"."""
    values: Values = {}
    for name, arm in arms.items():
        _add(values, name, arm.metrics, "")
        further = arm.metrics.get("further_features")
        for network, metrics in (further if isinstance(further, dict) else {}).items():
            _add(values, name, metrics, f"{network}: ")
    order = {metric.key: place for place, metric in enumerate(METRICS)}
    return {key: values[key] for key in sorted(values, key=lambda key: (": " in key, order.get(key, len(order))))}


def _add(values: Values, name: str, metrics: dict[str, Any], prefix: str) -> None:
    shares = shares_of(metrics)
    if shares:
        values.setdefault(f"{prefix}diversity_share", {})[name] = shares
    for row in per_prompt(metrics):
        for key, value in row.items():
            # The teacher's own arm shows the same.
            if is_number(value) and key != "diversity_share" and not key.startswith(REFERENCE):
                values.setdefault(prefix + key, {}).setdefault(name, {})[row["prompt"]] = value


def _short(value: float | None) -> float | None:
    """Four digits, which keep the page of a thousand prompts small; the CSV file has all of them."""
    return None if value is None else float(f"{value:.4g}")
