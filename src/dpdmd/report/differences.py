"""The difference of two arms in a metric, with its interval."""

from dpdmd.evaluate.intervals import Estimate, mean_estimate, ratio_estimate, t_estimate
from dpdmd.report.runs import ArmReport, is_number, per_prompt


def difference(a: ArmReport, b: ArmReport, key: str) -> Estimate | None:
    """a - b of a metric, paired by training seed where both have it for two seeds, else by prompt.

    The interval is Student's t over seeds, or the bootstrap over prompts; without common seeds or prompts there is
    none. Returns None when either lacks the metric.
    """
    first, second = a.metrics.get(key), b.metrics.get(key)
    if not is_number(first) or not is_number(second):
        return None
    of_seeds = by_seed(a, b, key)
    if of_seeds:
        return t_estimate(of_seeds)
    own = "diversity" if key == "diversity_share" else key
    of_a, of_b = _by_prompt(a, own), _by_prompt(b, own)
    if not of_a or of_a.keys() != of_b.keys():
        return Estimate(first - second, None, None, 0)
    gaps = [of_a[prompt] - of_b[prompt] for prompt in of_a]
    if key != "diversity_share":
        return mean_estimate(gaps)
    reference = _by_prompt(a, "reference_diversity")
    if reference.keys() != of_a.keys():
        return Estimate(first - second, None, None, 0)
    return ratio_estimate(gaps, [reference[prompt] for prompt in of_a])


def by_seed(a: ArmReport, b: ArmReport, key: str) -> list[float]:
    """a - b for each training seed that both have; [] for fewer than two."""
    first, second = (arm.metrics.get("values", {}).get(key, []) for arm in (a, b))
    gaps = [x - y for x, y in zip(first, second, strict=False) if x is not None and y is not None]
    return gaps if len(gaps) > 1 else []


def _by_prompt(arm: ArmReport, key: str) -> dict[str, float]:
    return {row["prompt"]: row[key] for row in per_prompt(arm.metrics) if is_number(row.get(key))}
