"""Reading what `dpdmd compare` left behind: the rows of its report, and what to say of them together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.report.runs import LABELS, ArmReport, read_arm
from dpdmd.store.files import read_json

COMPARISON_FILE = "comparison.json"
OF_ONE_SEED = ("per_prompt", "skipped", "provenance", "frechet_reliable", "num_prompts", "images_per_prompt")
ONE_SEED = (
    "Small figures are 95 % bootstrap intervals over prompts: how far the figure would move with other prompts. Every "
    "student was trained once; another training seed moves it further."
)


@dataclass(frozen=True)
class Comparison:
    """A comparison's rows (means over training seeds, pictures and curves of one seed) and what goes with them.

    paths: per arm its points from early to late, {"step", "diversity_share", "quality"}; curve: the teacher's,
    {"guidance_scale", ...}; both figures as {"mean", "low", "high", "values"}, as in `figures`, all those of each arm.
    """

    title: str
    arms: dict[str, ArmReport]
    figures: dict[str, dict[str, dict[str, Any]]]
    paths: dict[str, list[dict[str, Any]]]
    curve: list[dict[str, Any]]
    sentences: list[str]
    intervals: str
    picture: str
    shown: str
    provenance: dict[str, Any]


def read_comparison(folder: str | Path) -> Comparison:
    """Read comparison.json and the run folders of one seed. Raises ValueError when they are missing or broken."""
    folder = Path(folder)
    content = read_json(folder / COMPARISON_FILE)
    try:
        return _comparison(folder, content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / COMPARISON_FILE} is not what dpdmd compare writes: {error!r}") from None


def _comparison(folder: Path, content: dict[str, Any]) -> Comparison:
    figures, setup, runs = content["arms"], content["setup"], content["runs"]
    arms = {name: _arm(folder, name, figures[name], runs[name]) for name in figures}
    shown = sorted({place["seed"] for name in setup["students"] if (place := _shown(runs[name]))})
    return Comparison(
        title=f"{len(setup['students'])} arms, {setup['budget']} each",
        arms=arms,
        figures=figures,
        paths=content["paths"],
        curve=content["curve"],
        sentences=[_design(setup), *_failures(arms, runs), *_best(arms, setup)],
        intervals=_intervals(setup["seeds"]),
        picture=_picture(setup, bool(content["curve"])),
        shown=f"training seed {' and '.join(map(str, shown))}" if shown else "no seed",
        provenance={"comparison": setup, "made with": content["provenance"]},
    )


def _arm(folder: Path, name: str, figures: dict[str, dict[str, Any]], places: list[dict[str, Any]]) -> ArmReport:
    """A row: means and intervals over seeds, images and log of the first run that has not failed."""
    metrics: dict[str, Any] = {key: summary["mean"] for key, summary in figures.items()}
    metrics["intervals"] = {key: [s["low"], s["high"]] for key, s in figures.items() if "low" in s}
    metrics["values"] = {key: summary["values"] for key, summary in figures.items()}
    for key in ("diversity_share", "quality"):
        metrics[f"{key}_deviation"] = figures.get(key, {}).get("deviation")
    if "failed" in figures:
        # A number of runs, not a mean over them.
        metrics["failed"] = sum(figures["failed"]["values"])
        metrics["intervals"].pop("failed", None)
    place = _shown(places)
    label = LABELS.get(name, name)
    if place is None:
        return ArmReport(label, metrics=metrics)
    arm = read_arm(folder / place["folder"], label)
    # One seed's figures have no place among means over seeds; what they say of prompts does, named as one seed's.
    of_seed = {key: arm.metrics[key] for key in OF_ONE_SEED if key in arm.metrics}
    return replace(arm, metrics=of_seed | metrics)


def _shown(places: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first run of an arm that has not failed."""
    return next((place for place in places if place["failure"] is None), None)


def _design(setup: dict[str, Any]) -> str:
    seeds = setup["seeds"]
    number = "one training seed" if len(seeds) == 1 else f"{len(seeds)} training seeds"
    text = (
        f"Every student was trained with {number} ({', '.join(map(str, seeds))}), {setup['budget']} each, and draws "
        f"{setup['num_prompts']} prompts, {setup['images_per_prompt']} images of each. They are compared with their "
        f"teacher, {setup['teacher']}, at guidance {setup['guidance_scale']:g} and {setup['num_inference_steps']} "
        "steps, on the same prompts and noise."
    )
    if setup["budget"].endswith(("seconds", "second")):
        text += " The budget is time: what costs more per update gets fewer of them."
        if setup["jobs"] > 1:
            text += (
                f" {setup['jobs']} runs shared the machine, so that their time also depends on what ran beside them."
            )
    return text


def _failures(arms: dict[str, ArmReport], runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [
        f"{arms[name].label} failed with seed {place['seed']} behind update {place['failure']['step']}: "
        f"{place['failure']['error']}."
        for name, places in runs.items()
        for place in places
        if place["failure"] is not None
    ]


def _best(arms: dict[str, ArmReport], setup: dict[str, Any]) -> list[str]:
    """Which students no other beats on both axes; said of three or more."""
    points = {
        name: (arm.metrics.get("diversity_share"), arm.metrics.get("quality"))
        for name, arm in arms.items()
        if name in setup["students"]
    }
    points = {name: point for name, point in points.items() if None not in point}
    if len(points) < 3:
        return []
    best = [
        arms[name].label
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]
    names = best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"
    return [f"By their means no other student has both more diversity and better quality than {names}."]


def _intervals(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return ONE_SEED
    return (
        f"Figures of students are means over {len(seeds)} training seeds, small ones 95 % intervals over these "
        "(Student's t): how far the mean would move with other seeds. The teacher has no training seed; its intervals "
        "are over prompts (bootstrap)."
    )


def _picture(setup: dict[str, Any], has_curve: bool) -> str:
    text = (
        "Right: keeps more of the teacher's diversity. Up: more images that are clean and as prompted (quality in the "
        "table below). Large points are the arms' means with 95 % intervals both ways, small ones their seeds; the "
        "pale lines lead there from the students kept while training, early to late, each judged by "
        f"{setup['path_images_per_prompt']} images of every prompt."
    )
    if has_curve:
        text += " The gray line is the teacher itself at other guidance scales: what a student beats by being above it."
    return text
