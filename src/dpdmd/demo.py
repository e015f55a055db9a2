"""The whole way once: the built-in teacher, distilled by DMD and by DP-DMD, judged and shown."""

import os
import webbrowser
from pathlib import Path

import torch

from dpdmd.compare import Arm, compare_arms, table
from dpdmd.files import require_writable
from dpdmd.report.build import report_from_runs
from dpdmd.report.galleries import write_overview_png
from dpdmd.report.runs import read_runs
from dpdmd.world.prompts import evaluation_prompts

NUM_SEEDS = 16
FEW_STEPS = 4


def demo_arms(seed: int = 0, updates: int | None = None) -> list[Arm]:
    """Teacher, stock teacher at four steps, DMD and DP-DMD: same budget, noise and prompts."""
    overrides = {"train.seed": seed} | ({} if updates is None else {"train.num_updates": updates})
    return [
        Arm("teacher"),
        Arm("teacher_few_steps", sampling=("--num-inference-steps", str(FEW_STEPS))),
        Arm("dmd", recipe="scenes_dmd", overrides=overrides),
        Arm("dp_dmd", recipe="scenes_dp_dmd", overrides=overrides),
    ]


def run_demo(
    out: str | Path = "runs/demo", *, seed: int = 0, updates: int | None = None, open_browser: bool = False
) -> Path:
    """Train, sample, score and report into `out`; prints the table, returns the report's path.

    Beside report.html: metrics.json, and overview.png, the picture of the README.

    Called again it goes on where it was interrupted. Two runs with the same seed give the same metrics.
    Raises OSError, before anything is trained, when one of the files could not be written.
    """
    out = Path(out)
    for name in ("metrics.json", "report.html", "overview.png"):
        require_writable(out / name)
    rows = compare_arms(
        demo_arms(seed, updates),
        out,
        teacher="scenes",
        prompts=evaluation_prompts(),
        num_seeds=NUM_SEEDS,
        jobs=1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1),
    )
    report = report_from_runs([out], out / "report.html", title="DMD and DP-DMD on the built-in teacher")
    write_overview_png(out / "overview.png", read_runs([out]))
    print(f"\n{table(rows)}\n\nreport: {report.resolve()}")
    if open_browser:
        webbrowser.open(report.resolve().as_uri())
    return report
