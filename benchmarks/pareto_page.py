"""What README.md and docs/results.md show of `benchmarks.pareto`: its tables, between markers, and its pictures.

    python -m benchmarks.pareto_page

Reads benchmarks/results/pareto.json and noise_prediction_recipe.json; rewrites what stands between markers,
`<!-- pareto NAME -->` and `<!-- end -->`, draws docs/images/pareto.png and docs/images/frontier.png. Nothing in the
tables is written by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.pareto import ANCHOR_SCALE, ANCHOR_SCALES, COMMON, GROUPS, INTERVALS, SCALES, teacher_arm
from dpdmd.compare.arms import FEW_STEPS, REFERENCE
from dpdmd.compare.summary import PROMPTS, SEEDS, Summary, summarise
from dpdmd.report.colours import INK, OTHER_COLOURS, arm_colours
from dpdmd.report.comparison import Comparison
from dpdmd.report.pareto import pareto
from dpdmd.report.runs import ArmReport
from dpdmd.store.files import read_json, write_text

RESULTS = Path("benchmarks", "results", "pareto.json")
NOISE_PREDICTION = RESULTS.with_name("noise_prediction_recipe.json")
PAGES, IMAGES = (Path("docs", "results.md"), Path("README.md")), Path("docs", "images")
OURS, RIVAL = "dp_dmd_default", "dmd"
LABELS = {
    REFERENCE: "teacher, 30 steps, guidance 3.5",
    "teacher_guidance_1": "teacher, guidance 1",
    "teacher_guidance_2": "teacher, guidance 2",
    "teacher_guidance_5": "teacher, guidance 5",
    "teacher_guidance_8": "teacher, guidance 8",
    "teacher_few_steps_4": "teacher, 4 steps",
    "teacher_few_steps_8": "teacher, 8 steps",
    RIVAL: "DMD",
    OURS: "**DP-DMD**",
    "hybrid": "teacher's first segment, then that DMD (hybrid)",
    "dp_dmd_hybrid": "teacher's first segment, then that DP-DMD",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
    "dmd_published": "DMD, schedule as published",
    "dmd_high_noise": "the same, tau shifted by 6",
    "dp_dmd_published": "DP-DMD as published (K 5, lambda .05, stock grid)",
    "dp_dmd_script": "the same, K 10",
    "dmd_renoise": "DMD, re-noising",
    "renoise_anchor_guidance_2": "DP-DMD, re-noising, anchor guided by 2",
    "renoise_anchor_guidance_1.75": "DP-DMD, re-noising, anchor guided by 1.75",
}
NOISE_PREDICTION_LABELS = {
    REFERENCE: "teacher, 30 steps, guidance 3.5",
    FEW_STEPS: "teacher, 4 steps",
    "dmd": "DMD",
    "dp_dmd_x0": "**DP-DMD** (x0 target, lambda 1)",
    "dp_dmd_secant": "DP-DMD, secant in eps space, lambda 200, anchor guided by 2.5",
}
PICTURED = {
    RIVAL: "DMD",
    OURS: "DP-DMD",
    "hybrid": "hybrid",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
    "dmd_published": "DMD as published",
    "dp_dmd_published": "DP-DMD as published",
}
IN_SHORT = (REFERENCE, "teacher_guidance_2", "teacher_few_steps_4", *PICTURED)
# Figure, heading, digits.
COLUMNS = (
    ("diversity_share", "diversity, share of the teacher's", 2),
    ("prompts_near_reference", "prompts within 20 % of it", 2),
    ("effective_modes", "effective modes", 2),
    ("total_variation_reference", "off the teacher (total variation)", 3),
    ("frechet", "Frechet to the teacher", 2),
    ("named_accuracy", "named factors right", 3),
    ("validity", "clean scenes", 3),
    ("loss_spikes", "spikes of losses", 1),
    ("failed", "failed runs", 0),
)
SHORT = ("diversity_share", "total_variation_reference", "frechet", "named_accuracy", "validity")
FEWER = tuple(column for column in COLUMNS if column[0] in SHORT)
DIFFERENCES = ("effective_modes", *SHORT)

Arms = dict[str, dict[str, Summary]]


def number(value: float, digits: int) -> str:
    """Without the zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def cell(summary: Summary | None, digits: int) -> str:
    """Mean and interval: over seeds half of it, over prompts its ends."""
    if summary is None:
        return ""
    text = number(summary["mean"], digits)
    if summary.get("interval") == SEEDS:
        return f"{text} ± {number((summary['high'] - summary['low']) / 2, digits)}"
    if summary.get("interval") == PROMPTS and summary["low"] < summary["high"]:
        return f"{text} [{number(summary['low'], digits)}, {number(summary['high'], digits)}]"
    return text


def calls(arm: dict[str, Summary]) -> str:
    """Network calls per sample and update."""
    if "forwards_per_update" not in arm:
        return ""
    return f"{arm['forwards_per_update']['mean']:g} / {arm['backwards_per_update']['mean']:g}"


def num_seeds(name: str, arm: dict[str, Summary]) -> str:
    """Of training; a teacher has none."""
    return "" if name.startswith("teacher") else str(len(arm["diversity_share"]["values"]))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(arms: Arms, labels: dict[str, str], columns: tuple[tuple[str, str, int], ...]) -> str:
    """The arms of `labels` that there are, in that order."""
    rows = [
        [label, num_seeds(name, arms[name]), *(cell(arms[name].get(key), digits) for key, _, digits in columns)]
        + [calls(arms[name])]
        for name, label in labels.items()
        if name in arms
    ]
    return markdown(["arm", "seeds", *(heading for _, heading, _ in columns), "calls, forward / backward"], rows)


# The README's table: its arms, and its columns (metric, heading).
README_LABELS = {
    REFERENCE: "teacher",
    RIVAL: "DMD",
    OURS: "**DP-DMD**",
    "dmd_perceptual": "DMD + perceptual",
    "dmd_adversarial": "DMD + adversarial",
}
README_COLUMNS = {
    "diversity_share": "diversity kept",
    "validity": "clean scenes",
    "total_variation_reference": "distance to the teacher",
}


def readme_table(arms: Arms) -> str:
    """A few arms and columns, with zeros before the decimal points."""
    rows = [[label, *(cell(arms[name][key], 2) for key in README_COLUMNS)] for name, label in README_LABELS.items()]
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", markdown(["model", *README_COLUMNS.values()], rows))


def changed(group: str) -> dict[str, str]:
    """What the arms of a group have of their own, as settings."""
    arms, _ = GROUPS[group]
    labels = {}
    for arm in arms():
        own = {key: value for key, value in arm.overrides.items() if COMMON.get(key) != value}
        settings = ", ".join(f"`{key.removeprefix('objective.')} = {value}`" for key, value in own.items())
        labels[arm.name] = f"{arm.recipe.removeprefix('scenes_')}: {settings}"
    return labels


def first_seeds(arm: dict[str, Summary], number: int) -> dict[str, Summary]:
    """Its figures over the first training seeds only."""
    return {key: summarise(summary["values"][:number]) for key, summary in arm.items()}


def paired(a: dict[str, Summary], b: dict[str, Summary]) -> list[str]:
    """Of a less b, seed by seed: the number of seeds that both have, then DIFFERENCES."""
    cells = []
    for key in DIFFERENCES:
        pairs = list(zip(a[key]["values"], b[key]["values"], strict=False))
        cells.append(cell(summarise([x - y for x, y in pairs if None not in (x, y)]), 3))
    return [str(len(pairs)), *cells]


def differences(arms: Arms) -> str:
    """DP-DMD less each student."""
    others = [name for name in LABELS if name in arms and name != OURS and not name.startswith("teacher")]
    return _differences("DP-DMD less", {LABELS[name]: paired(arms[OURS], arms[name]) for name in others})


def option_differences(arms: Arms) -> str:
    """Each option less DP-DMD."""
    labels = {name: label for name, label in changed("options").items() if name in arms}
    return _differences("less the recipe", {label: paired(arms[name], arms[OURS]) for name, label in labels.items()})


def sweep_differences(arms: Arms) -> str:
    """DP-DMD less DMD at the same setting, wherever both have been swept."""
    labels = {name: label for name, label in changed("sweeps").items() if f"dp_{name}" in arms}
    rows = {label.removeprefix("dmd: "): paired(arms[f"dp_{name}"], arms[name]) for name, label in labels.items()}
    return _differences("DP-DMD less DMD", rows)


def _differences(corner: str, rows: dict[str, list[str]]) -> str:
    headings = {key: heading for key, heading, _ in COLUMNS}
    header = [corner, "seeds", *(headings[key] for key in DIFFERENCES)]
    return markdown(header, [[label, *cells] for label, cells in rows.items()])


def picture(arms: Arms) -> Figure | None:
    """Diversity against clean scenes: the main arms, their seeds, the teacher's curve over guidance."""
    there = {name: arms[name] for name in PICTURED if name in arms}
    labels = {name: PICTURED[name] for name in there}
    curve = [{"guidance_scale": scale, **arms[teacher_arm(scale).name]} for scale in SCALES]
    comparison = Comparison(
        title="", arms={name: ArmReport(label, metrics={}) for name, label in labels.items()}, figures=there, paths={},
        curve=curve, sentences=[], intervals="", picture="", shown="", provenance={},
    )  # fmt: skip
    colours = arm_colours(["teacher", "dmd", "dp_dmd", *there])
    return pareto(comparison, colours | {OURS: colours["dp_dmd"]})


def frontier(arms: Arms) -> Figure | None:
    """Of each noise interval a line over the anchor's guidance, and DMD as a square."""
    lines = {}
    for name in INTERVALS:
        points = [(f"{scale:g}", _frontier_arm(name, scale)) for scale in ANCHOR_SCALES]
        lines[name] = [(label, arms[arm]) for label, arm in points if arm in arms]
    if not all(lines.values()):
        return None
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, (key, heading, unit) in zip(
        panels, (("validity", "clean scenes, %", 100), ("frechet", "Frechet", 1)), strict=True
    ):
        axes.set_xlabel("diversity, % of the teacher's")
        axes.set_ylabel(heading)
        axes.grid(alpha=0.18, linewidth=0.6, color=INK)
        axes.axvline(100, color=INK, linewidth=0.6, linestyle="--")
        for colour, (name, points) in zip(OTHER_COLOURS, lines.items(), strict=False):
            xy = [(100 * arm["diversity_share"]["mean"], unit * arm[key]["mean"]) for _, arm in points]
            label = f"guided {name.replace('_', ' ')}"
            axes.plot(*zip(*xy, strict=True), "o-", color=colour, label=f"DP-DMD, {label}", linewidth=1.3)
            for (scale, _), point in zip(points, xy, strict=True):
                axes.annotate(scale, point, xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=colour)
            dmd = arms.get("dmd" if name == "everywhere" else f"dmd_guided_{name}")
            if dmd:
                x, y = 100 * dmd["diversity_share"]["mean"], unit * dmd[key]["mean"]
                axes.plot(x, y, "s", color=colour, label=f"DMD, {label}", markersize=7, markerfacecolor="none")
    panels[0].legend(fontsize=7)
    return figure


def _frontier_arm(interval: str, scale: float) -> str:
    is_default = interval == "everywhere" and scale == ANCHOR_SCALE
    return OURS if is_default else f"dp_dmd_guided_{interval}_anchor_{scale:g}"


def sections(arms: Arms, noise_prediction: Arms) -> dict[str, str]:
    """{name: Markdown} of all that the pages show."""
    base = {OURS: "dp_dmd, as in the recipe", RIVAL: "dmd, as in the recipe"}
    rivals = {name: LABELS[name] for name in ("dmd_perceptual", "dmd_adversarial")}
    # Beside arms of three seeds the same three of the recipes.
    alike = arms | {name: first_seeds(arms[name], 3) for name in base}
    ours = [name for name in NOISE_PREDICTION_LABELS if name.startswith("dp_dmd")]
    less_dmd = {NOISE_PREDICTION_LABELS[name]: paired(noise_prediction[name], noise_prediction["dmd"]) for name in ours}
    return {
        "main": table(arms, LABELS, COLUMNS),
        "short": table(arms, {name: LABELS[name] for name in IN_SHORT}, FEWER),
        "differences": differences(arms),
        "rivals": table(arms, rivals | changed("rivals"), FEWER),
        "option_differences": option_differences(arms),
        "options": table(alike, {OURS: base[OURS]} | changed("options"), FEWER),
        "frontier": table(alike, base | changed("frontier"), FEWER),
        "sweeps": table(alike, base | changed("sweeps"), FEWER),
        "sweep_differences": sweep_differences(arms),
        "longer": table(alike, base | changed("longer"), FEWER),
        "noise_prediction": table(noise_prediction, NOISE_PREDICTION_LABELS, COLUMNS[:-2]),
        "noise_prediction_short": table(noise_prediction, NOISE_PREDICTION_LABELS, FEWER),
        "noise_prediction_differences": _differences("less DMD", less_dmd),
        "readme": readme_table(arms),
    }


def fill(page: str, texts: dict[str, str]) -> str:
    """The page with what stands between its markers made anew. Raises KeyError for a marker of an unknown name."""

    def section(match: re.Match) -> str:
        return f"<!-- pareto {match[1]} -->\n\n{texts[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- pareto (\w+) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def main() -> None:
    arms, noise_prediction = (read_json(path)["arms"] for path in (RESULTS, NOISE_PREDICTION))
    texts = sections(arms, noise_prediction)
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8"), texts))
    drawings: dict[str, Callable[[Arms], Figure | None]] = {"pareto": picture, "frontier": frontier}
    for name, draw in drawings.items():
        if (figure := draw(arms)) is not None:
            figure.savefig(IMAGES / f"{name}.png", dpi=130)
    print(f"written: {', '.join(map(str, PAGES))}, {IMAGES}")


if __name__ == "__main__":
    main()
