"""What docs/results.md and docs/tables.md show of `benchmarks.pareto`: its tables, and its pictures.

    python -m benchmarks.pareto_page

Reads benchmarks/results/pareto.json and noise_prediction_recipe.json; rewrites the text between the markers
`<!-- pareto NAME -->` and `<!-- end -->`; draws docs/images/pareto.png. Nothing in the tables is written by hand:
docs/tables.md has all of them, docs/results.md the short ones.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.pareto import GROUPS, OF_DP_DMD, SCALES, teacher_arm
from dpdmd.compare.arms import FEW_STEPS, REFERENCE
from dpdmd.compare.summary import PROMPTS, SEEDS, Summary, summarise
from dpdmd.evaluate.metrics import metric_of
from dpdmd.report.colours import arm_colours
from dpdmd.report.comparison import Comparison
from dpdmd.report.pareto import pareto
from dpdmd.report.runs import ArmReport
from dpdmd.store.files import read_json, write_text

RESULTS = Path("benchmarks", "results", "pareto.json")
NOISE_PREDICTION = RESULTS.with_name("noise_prediction_recipe.json")
PAGES = Path("docs", "tables.md"), Path("docs", "results.md")
PICTURE = Path("docs", "images", "pareto.png")
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
    "dp_dmd_published": "DP-DMD as published (K 5, lambda 0.05, stock grid)",
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
SIZE = (7.8, 4.6)  # inches
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
# Metrics of the tables, and the digits after the point.
COLUMNS = {
    "diversity_share": 2,
    "prompts_near_reference": 2,
    "effective_modes": 2,
    "total_variation_reference": 3,
    "frechet": 2,
    "named_accuracy": 3,
    "validity": 3,
    "loss_spikes": 1,
    "failed": 0,
}
SHORT = ("diversity_share", "total_variation_reference", "frechet", "named_accuracy", "validity")
WITHOUT_STABILITY = tuple(key for key in COLUMNS if key not in ("loss_spikes", "failed"))
DIFFERENCES = ("effective_modes", *SHORT)

Arms = dict[str, dict[str, Summary]]


def cell(summary: Summary | None, digits: int) -> str:
    """Mean and interval: half the width of one over seeds, both ends of one over prompts."""
    if summary is None:
        return ""
    text = f"{summary['mean']:z.{digits}f}"
    if summary.get("interval") == SEEDS:
        return f"{text} ± {(summary['high'] - summary['low']) / 2:z.{digits}f}"
    if summary.get("interval") == PROMPTS and summary["low"] < summary["high"]:
        return f"{text} [{summary['low']:z.{digits}f}, {summary['high']:z.{digits}f}]"
    return text


def metric_cell(arm: dict[str, Summary], key: str) -> str:
    """The cell of one metric; for failed runs their number instead of a mean."""
    if key == "failed" and key in arm:
        return f"{sum(arm[key]['values']):.0f}"
    return cell(arm.get(key), COLUMNS[key])


def calls(arm: dict[str, Summary]) -> str:
    """Network calls per sample and cycle, forward and backward."""
    if "forwards_per_update" not in arm:
        return ""
    return f"{arm['forwards_per_update']['mean']:g} / {arm['backwards_per_update']['mean']:g}"


def num_seeds(name: str, arm: dict[str, Summary]) -> str:
    """The number of training seeds; a teacher has none."""
    return "" if name.startswith("teacher") else str(len(arm["diversity_share"]["values"]))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(arms: Arms, labels: dict[str, str], keys: Sequence[str]) -> str:
    """The metrics `keys` of those arms in `labels` that have results, in that order."""
    rows = [
        [label, num_seeds(name, arms[name]), *(metric_cell(arms[name], key) for key in keys), calls(arms[name])]
        for name, label in labels.items()
        if name in arms
    ]
    return markdown(["arm", "seeds", *(metric_of(key).heading for key in keys), "calls, forward / backward"], rows)


def changed(group: str) -> dict[str, str]:
    """The settings that distinguish each arm of a group."""
    arms, _ = GROUPS[group]
    labels = {}
    for arm in arms():
        own = {key: value for key, value in arm.overrides.items() if OF_DP_DMD.get(key) != value}
        settings = ", ".join(f"`{key.removeprefix('objective.')} = {value}`" for key, value in own.items())
        labels[arm.name] = f"{arm.recipe.removeprefix('scenes_')}: {settings}"
    return labels


def first_seeds(arm: dict[str, Summary], number: int) -> dict[str, Summary]:
    """The metrics of an arm over the first training seeds only."""
    return {key: summarise(summary["values"][:number]) for key, summary in arm.items()}


def paired(a: dict[str, Summary], b: dict[str, Summary]) -> list[str]:
    """a - b, paired by seed: the number of seeds that both have, then the metrics in DIFFERENCES."""
    cells = []
    for key in DIFFERENCES:
        pairs = list(zip(a[key]["values"], b[key]["values"], strict=False))
        cells.append(cell(summarise([x - y for x, y in pairs if None not in (x, y)]), 3))
    return [str(len(pairs)), *cells]


def differences(arms: Arms) -> str:
    """DP-DMD minus each student."""
    others = [name for name in LABELS if name in arms and name != OURS and not name.startswith("teacher")]
    return _differences("DP-DMD minus", {LABELS[name]: paired(arms[OURS], arms[name]) for name in others})


def option_differences(arms: Arms) -> str:
    """Each option minus DP-DMD."""
    labels = {name: label for name, label in changed("options").items() if name in arms}
    return _differences("minus the recipe", {label: paired(arms[name], arms[OURS]) for name, label in labels.items()})


def sweep_differences(arms: Arms) -> str:
    """DP-DMD minus DMD at the same setting, for settings that both have."""
    labels = {name: label for name, label in changed("sweeps").items() if f"dp_{name}" in arms}
    rows = {label.removeprefix("dmd: "): paired(arms[f"dp_{name}"], arms[name]) for name, label in labels.items()}
    return _differences("DP-DMD minus DMD", rows)


def _differences(corner: str, rows: dict[str, list[str]]) -> str:
    header = [corner, "seeds", *(metric_of(key).heading for key in DIFFERENCES)]
    return markdown(header, [[label, *cells] for label, cells in rows.items()])


def picture(arms: Arms) -> Figure | None:
    """Plot diversity against quality: the main arms, their seeds, the teacher's curve over guidance."""
    there = {name: arms[name] for name in PICTURED if name in arms}
    labels = {name: PICTURED[name] for name in there}
    curve = [{"guidance_scale": scale, **arms[teacher_arm(scale).name]} for scale in SCALES]
    comparison = Comparison(
        title="", arms={name: ArmReport(label, metrics={}) for name, label in labels.items()}, metrics=there, paths={},
        curve=curve, sentences=[], intervals="", caption="", shown="", provenance={},
    )  # fmt: skip
    colours = arm_colours({name: ArmReport(name) for name in ("teacher", "dmd", "dp_dmd", *there)})
    return pareto(comparison, colours | {OURS: colours["dp_dmd"]}, SIZE)


def sections(arms: Arms, noise_prediction: Arms) -> dict[str, str]:
    """{name: Markdown} of all tables on the pages."""
    base = {OURS: "dp_dmd, as in the recipe", RIVAL: "dmd, as in the recipe"}
    rivals = {name: LABELS[name] for name in ("dmd_perceptual", "dmd_adversarial")}
    # The recipes with three seeds, as many as the arms that they are compared with.
    alike = arms | {name: first_seeds(arms[name], 3) for name in base}
    ours = [name for name in NOISE_PREDICTION_LABELS if name.startswith("dp_dmd")]
    less_dmd = {NOISE_PREDICTION_LABELS[name]: paired(noise_prediction[name], noise_prediction["dmd"]) for name in ours}
    return {
        "main": table(arms, LABELS, COLUMNS),
        "short": table(arms, {name: LABELS[name] for name in IN_SHORT}, SHORT),
        "differences": differences(arms),
        "rivals": table(arms, rivals | changed("rivals"), SHORT),
        "option_differences": option_differences(arms),
        "options": table(alike, {OURS: base[OURS]} | changed("options"), SHORT),
        "frontier": table(alike, base | changed("frontier"), SHORT),
        "sweeps": table(alike, base | changed("sweeps"), SHORT),
        "sweep_differences": sweep_differences(arms),
        "longer": table(alike, base | changed("longer"), SHORT),
        "noise_prediction": table(noise_prediction, NOISE_PREDICTION_LABELS, WITHOUT_STABILITY),
        "noise_prediction_short": table(noise_prediction, NOISE_PREDICTION_LABELS, SHORT),
        "noise_prediction_differences": _differences("minus DMD", less_dmd),
    }


def fill(page: str, texts: dict[str, str], marker: str = "pareto") -> str:
    """The page with new text between the markers of a benchmark. Raises KeyError for one of an unknown name."""

    def section(match: re.Match) -> str:
        return f"<!-- {marker} {match[1]} -->\n\n{texts[match[1]]}\n\n<!-- end -->"

    return re.sub(rf"<!-- {marker} (\w+) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def main() -> None:
    arms, noise_prediction = (read_json(path)["arms"] for path in (RESULTS, NOISE_PREDICTION))
    texts = sections(arms, noise_prediction)
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8"), texts))
    if (figure := picture(arms)) is not None:
        figure.savefig(PICTURE, dpi=130)
    print(f"written: {', '.join(map(str, PAGES))}, {PICTURE}")


if __name__ == "__main__":
    main()
