"""Read what `dpdmd compare` wrote: the arms of its report, and the sentences about all of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.report.runs import LABELS, ArmReport, read_arm
from dpdmd.store.files import read_json
from dpdmd.store.state import State, checked

COMPARISON_FILE = "comparison.json"
OF_ONE_SEED = ("per_prompt", "skipped", "provenance", "frechet_reliable", "num_prompts", "images_per_prompt")
ONE_SEED = (
    "Small numbers are 95 % bootstrap intervals over prompts: how far a metric may move with other prompts. Every "
    "student was trained once. Another training seed may move its metrics further."
)


class ComparisonFile(State):
    """comparison.json."""

    arms: dict[str, dict[str, dict[str, Any] | None]]
    setup: dict[str, Any]
    runs: dict[str, list[dict[str, Any]]]
    paths: dict[str, list[dict[str, Any]]]
    curve: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """What `dpdmd compare` found.

    arms: each with its metrics over all training seeds, and with images and log of one seed. metrics: {arm: {metric:
    {"mean", "low", "high", "values"}}}. paths: {arm: the students kept while it trained, early to late}, each a dict
    of "step", "diversity_share" and "quality". curve: the teacher at several values of "guidance_scale", with the same
    two metrics. sentences: for the top of the page. intervals: what its intervals are over. caption: of the plot.
    shown: the seed whose images are shown.
    """

    title: str
    arms: dict[str, ArmReport]
    metrics: dict[str, dict[str, dict[str, Any]]]
    paths: dict[str, list[dict[str, Any]]]
    curve: list[dict[str, Any]]
    sentences: list[str]
    intervals: str
    caption: str
    shown: str
    provenance: dict[str, Any]


def read_comparison(folder: str | Path) -> Comparison:
    """Read comparison.json and the run folders of one seed. Raises ValueError for what is missing or broken."""
    folder = Path(folder)
    path = folder / COMPARISON_FILE
    content = read_json(path)
    checked(content, ComparisonFile, f"{path} was not written by dpdmd compare")
    try:
        return _comparison(folder, content)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder / COMPARISON_FILE} was not written by dpdmd compare: {error!r}") from None


def _comparison(folder: Path, content: dict[str, Any]) -> Comparison:
    metrics, setup, runs = content["arms"], content["setup"], content["runs"]
    arms = {name: _arm(folder, name, metrics[name], runs[name]) for name in metrics}
    shown = sorted({place["seed"] for name in setup["students"] if (place := _shown(runs[name]))})
    return Comparison(
        title=f"{len(setup['students'])} arms, {setup['budget']} each",
        arms=arms,
        metrics=metrics,
        paths=content["paths"],
        curve=content["curve"],
        sentences=[_design(setup), *_failures(arms, runs), *_best(arms, setup)],
        intervals=_intervals(setup["seeds"]),
        caption=_caption(setup, bool(content["curve"])),
        shown=f"training seed {' and '.join(map(str, shown))}" if shown else "no seed",
        provenance={"comparison": setup, "made with": content["provenance"]},
    )


def _arm(folder: Path, name: str, summaries: dict[str, dict[str, Any]], places: list[dict[str, Any]]) -> ArmReport:
    """An arm: means and intervals over seeds, images and log of its first run that has not failed."""
    metrics: dict[str, Any] = {key: summary["mean"] for key, summary in summaries.items()}
    metrics["intervals"] = {key: [s["low"], s["high"]] for key, s in summaries.items() if "low" in s}
    metrics["values"] = {key: summary["values"] for key, summary in summaries.items()}
    for key in ("diversity_share", "quality"):
        metrics[f"{key}_deviation"] = summaries.get(key, {}).get("deviation")
    if "failed" in summaries:
        # A number of runs, not a mean over them.
        metrics["failed"] = sum(summaries["failed"]["values"])
        metrics["intervals"].pop("failed", None)
    place = _shown(places)
    label = LABELS.get(name, name)
    if place is None:
        return ArmReport(label, metrics=metrics)
    arm = read_arm(folder / place["folder"], label)
    # The other metrics of one seed do not belong among means over seeds; the page names the seed of these.
    of_seed = {key: arm.metrics[key] for key in OF_ONE_SEED if key in arm.metrics}
    return replace(arm, metrics=of_seed | metrics)


def _shown(places: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first run of an arm that has not failed."""
    return next((place for place in places if place["failure"] is None), None)


def _design(setup: dict[str, Any]) -> str:
    seeds = setup["seeds"]
    number = "one training seed" if len(seeds) == 1 else f"{len(seeds)} training seeds"
    text = (
        f"Every student was trained with {number} ({', '.join(map(str, seeds))}), {setup['budget']} each, and then "
        f"sampled: {setup['num_prompts']} prompts, {setup['images_per_prompt']} images each. It is compared with its "
        f"teacher, {setup['teacher']} (guidance {setup['guidance_scale']:g}, {setup['num_inference_steps']} steps), "
        "on the same prompts and noise."
    )
    if setup["budget"].endswith(("seconds", "second")):
        text += " The budget is time: the more an update costs, the fewer of them fit."
        if setup["jobs"] > 1:
            text += f" {setup['jobs']} runs shared the machine and may have slowed each other down."
    return text


def _failures(arms: dict[str, ArmReport], runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [
        f"{arms[name].label} failed with seed {place['seed']} after update {place['failure']['step']}: "
        f"{place['failure']['error']}."
        for name, places in runs.items()
        for place in places
        if place["failure"] is not None
    ]


def _best(arms: dict[str, ArmReport], setup: dict[str, Any]) -> list[str]:
    """Of three students or more: those that no other beats in both diversity and quality."""
    points = {
        name: (diversity, quality)
        for name, arm in arms.items()
        if name in setup["students"]
        and (diversity := arm.metrics.get("diversity_share")) is not None
        and (quality := arm.metrics.get("quality")) is not None
    }
    if len(points) < 3:
        return []
    best = [
        arms[name].label
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]
    names = best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"
    return [f"Judged by the means, no other student has both more diversity and better quality than {names}."]


def _intervals(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return ONE_SEED
    return (
        f"Metrics of students are means over {len(seeds)} training seeds. Small numbers are 95 % intervals over the "
        "seeds (Student's t): how far the mean may move with other seeds. The teacher has no training seed, so its "
        "intervals are over prompts (bootstrap)."
    )


def _caption(setup: dict[str, Any], has_curve: bool) -> str:
    text = (
        "Right: more of the teacher's diversity is kept. Up: more images are clean and as prompted (quality in the "
        "table below). Large points are means of the arms with 95 % intervals in both directions, crosses are single "
        "seeds. Pale lines lead there from students kept during training, early to late, each judged by "
        f"{setup['path_images_per_prompt']} images per prompt."
    )
    if has_curve:
        text += " The grey line is the teacher at other guidance scales. A student above it beats what guidance can do."
    return text
