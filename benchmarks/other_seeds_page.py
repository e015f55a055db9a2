"""What the documentation shows of `benchmarks.other_seeds`: its tables and its pictures.

    python -m benchmarks.other_seeds_page

Reads benchmarks/results/other_seeds.json; rewrites the text between the markers `<!-- other_seeds NAME -->` and
`<!-- end -->`; draws docs/images/forwards.png. Nothing in the tables is written by hand.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.other_seeds import FLOORS, FORWARDS, ON_THE_WAY, RESULTS, Row
from benchmarks.pareto_page import cell, fill, markdown
from dpdmd.compare.summary import Summary, summarise, summarise_runs
from dpdmd.evaluate.intervals import LEVEL
from dpdmd.evaluate.metrics import metric_of
from dpdmd.store.files import read_json, write_text

PAGES = Path("docs", "results.md"), Path("README.md")
PICTURE = Path("docs", "images", "forwards.png")
FLOOR, OURS = "teacher", "dp_dmd"
LABELS = {
    FLOOR: "teacher at four further sets of seeds (floor)",
    "dmd": "DMD",
    "dmd_half_rate": "DMD, half the learning rate",
    "dmd_falling_rate": "DMD, learning rate along a cosine",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
    "dp_dmd_published": "DP-DMD as published",
    "dp_dmd_before": "DP-DMD, the recipe before",
    "dp_dmd_unaligned": "DP-DMD, fake score not aligned",
    "dp_dmd_ode": "the same, deterministic steps alone",
    "dp_dmd_weight_0.05": "the same, anchor's weight 0.05",
    "dp_dmd_every_2": "the same, anchor in every second update",
    "dp_dmd_anchor_3": "**DP-DMD**, anchor guided by 3",
    "dp_dmd_anchor_3.5": "**DP-DMD**, anchor guided by 3.5, as the teacher",
    "dp_dmd_teacher_first": "**DP-DMD**, the teacher in place of step 1",
    OURS: "**DP-DMD**",
}
COLUMNS = {
    "diversity_share": 2,
    "validity": 3,
    "frechet": 2,
    "total_variation_reference": 3,
    "precision": 3,
    "recall": 3,
}
README_LABELS = {
    FLOOR: "teacher, other seeds",
    "dmd_half_rate": "DMD",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
    OURS: "**DP-DMD**",
}
README_COLUMNS = {
    "diversity_share": "diversity kept",
    "validity": "clean scenes",
    "total_variation_reference": "distance to the teacher",
}
PANELS = {
    "diversity_share": "diversity, share of the teacher's",
    "validity": "clean scenes",
    "frechet": "Frechet distance to the teacher",
}
NUM_RESAMPLES = 4000


def final(rows: list[Row], arm: str) -> list[Row]:
    """The rows of an arm at its end, by seed; of the teacher those of all sets of its images but the reference."""
    names = FLOORS if arm == FLOOR else (arm,)
    own = [row for row in rows if row["arm"] in names and row["forwards"] is None]
    return sorted(own, key=lambda row: (row["seed"] or 0, row["arm"]))


def with_teachers_mean(rows: list[Row]) -> list[Row]:
    """The same rows with the share of the diversity that the teacher has on average over all sets of its images.

    In the results it is the share of the reference's, which is one set.
    """
    floors = [row["metrics"] for row in final(rows, FLOOR)]
    reference = floors[0]["diversity"] / floors[0]["diversity_share"]
    factor = reference / mean([reference, *(metrics["diversity"] for metrics in floors)])
    key = "diversity_share"
    return [
        row
        | {
            "metrics": row["metrics"] | {key: factor * row["metrics"][key]},
            "intervals": row["intervals"] | {key: [factor * bound for bound in row["intervals"][key]]},
        }
        for row in rows
    ]


def summaries(rows: list[Row], arm: str) -> dict[str, Any]:
    """{metric: summary} of an arm over its seeds."""
    return summarise_runs([row["metrics"] | {"intervals": row["intervals"]} for row in final(rows, arm)])


def clean_difference(ours: list[Row], teacher: list[Row]) -> tuple[float, float, float]:
    """Clean scenes minus the mean of the teacher's rows, with a 95 % interval over training seeds and prompts.

    Both are resampled, seeds and prompts independently; of a prompt, student and teacher stay together.
    """
    differences = np.array([row["clean"] for row in ours]) - np.mean([row["clean"] for row in teacher], axis=0)
    rng = np.random.default_rng(0)
    means = [
        differences[np.ix_(*(rng.integers(0, n, n) for n in differences.shape))].mean() for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(differences.mean()), float(low), float(high)


def at_modes_of(ours: Row, other: Row) -> float:
    """Clean scenes minus the other's, over the kinds of scene (shape, size, background) that both draw, each weighted
    by its share of the other's images."""
    both = [kind for kind in other["cells"] if kind in ours["cells"]]
    weights = np.array([other["cells"][kind][1] for kind in both], dtype=float)
    rates = [np.array([row["cells"][kind][0] / row["cells"][kind][1] for kind in both]) for row in (ours, other)]
    return float(weights @ (rates[0] - rates[1]) / weights.sum())


def paired(rows: list[Row], other: str) -> list[tuple[Row, list[Row]]]:
    """Each row of DP-DMD with the rows of another arm that it is compared with.

    They are the one of its training seed, without which it is left out, or all of the teacher's.
    """
    theirs = final(rows, other)
    found = [
        (own, [row for row in theirs if other == FLOOR or row["seed"] == own["seed"]]) for own in final(rows, OURS)
    ]
    return [(own, compared) for own, compared in found if compared]


def difference(rows: list[Row], other: str, key: str) -> Summary | None:
    """A metric of DP-DMD minus another arm's, paired by training seed; None where no seed has both."""
    return summarise(
        [own["metrics"][key] - mean(row["metrics"][key] for row in compared) for own, compared in paired(rows, other)]
    )


def table(rows: list[Row]) -> str:
    """All arms that have results."""
    teacher = final(rows, FLOOR)
    lines = []
    for name, label in LABELS.items():
        if not (own := final(rows, name)):
            continue
        summary = summaries(rows, name)
        less = "" if name == FLOOR else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*clean_difference(own, teacher))
        metrics = [cell(summary[key], digits) for key, digits in COLUMNS.items()]
        metrics.insert(2, less)
        calls = summary.get("forwards_per_update")
        per_update = "" if calls is None else f"{calls['mean'] + 2 * summary['backwards_per_update']['mean']:.0f}"
        lines.append([label, "" if name == FLOOR else str(len(own)), *metrics, per_update])
    headings = [metric_of(key).heading for key in COLUMNS]
    headings.insert(2, "minus the teacher's")
    return markdown(["arm", "seeds", *headings, "forwards per update"], lines)


def differences(rows: list[Row]) -> str:
    """DP-DMD minus the teacher and each other arm, paired by training seed."""
    lines = []
    for name, label in LABELS.items():
        if name != OURS and (number := len(paired(rows, name))):
            lines.append([label, str(number), *(cell(difference(rows, name, key), 3) for key in COLUMNS)])
    return markdown(["DP-DMD minus", "seeds", *(metric_of(key).heading for key in COLUMNS)], lines)


def modes(rows: list[Row]) -> str:
    """DP-DMD's clean scenes minus each DMD's, at the modes of that DMD, paired by seed."""
    lines = []
    for name in ("dmd", "dmd_half_rate", "dmd_falling_rate"):
        if found := [at_modes_of(own, dmd) for own, (dmd,) in paired(rows, name)]:
            lines.append([LABELS[name], str(len(found)), cell(summarise(found), 3)])
    return markdown(["DP-DMD minus", "seeds", "clean scenes at its modes"], lines)


def readme(rows: list[Row]) -> str:
    """The table of README.md."""
    found = {name: summaries(rows, name) for name in README_LABELS if final(rows, name)}
    lines = [[README_LABELS[name], *(cell(arm[key], 2) for key in README_COLUMNS)] for name, arm in found.items()]
    return markdown(["model", *README_COLUMNS.values()], lines)


def picture(rows: list[Row]) -> Figure:
    """What the students of seed 0 were worth, over the forwards that were spent on them."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    floors = final(rows, FLOOR)
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        axis.axhline(mean(row["metrics"][key] for row in floors), color="gray", label="teacher, other seeds")
        for name in ON_THE_WAY:
            own = [row for row in rows if row["arm"] == name and row["seed"] == 0]
            points = sorted((row["forwards"] or FORWARDS, row["metrics"][key]) for row in own)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=LABELS[name].replace("*", ""))
        axis.set(title=title, xlabel="forwards per sample of a batch", xlim=(0, None))
    axes[-1].set_ylim(0, None)
    axes[0].legend(fontsize=7)
    return figure


def sections(content: dict[str, Any]) -> dict[str, str]:
    """{name: Markdown} of all tables."""
    flow, noise = (with_teachers_mean(content["rows"][group]) for group in ("flow", "noise"))
    return {
        "flow": table(flow),
        "noise": table(noise),
        "flow_differences": differences(flow),
        "noise_differences": differences(noise),
        "flow_modes": modes(flow),
        "noise_modes": modes(noise),
        "readme": readme(flow),
    }


def main() -> None:
    content = read_json(RESULTS)
    texts = sections(content)
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8"), texts, "other_seeds"))
    picture(with_teachers_mean(content["rows"]["flow"])).savefig(PICTURE, dpi=130)
    print(f"written: {', '.join(map(str, PAGES))}, {PICTURE}")


if __name__ == "__main__":
    main()
