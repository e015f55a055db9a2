"""The demo: distil the built-in teacher with DMD and with DP-DMD, score the students and write a report."""

import logging
import os
import webbrowser
from pathlib import Path

import torch

from dpdmd.compare.arms import FEW_STEPS, REFERENCE, Arm, Run
from dpdmd.compare.engine import run_and_measure
from dpdmd.compare.summary import summarise_arms, table
from dpdmd.report.build import report_from_runs, verdict_sentence
from dpdmd.report.galleries import write_overview_png
from dpdmd.report.runs import read_runs
from dpdmd.store.files import make_folder, require_writable, write_json
from dpdmd.world.find import world_named

logger = logging.getLogger(__name__)

IN_WORDS = """The demo distils a built-in teacher, which draws in 30 steps, into students of 4 steps: one by
DMD, which tends to draw the same image for every seed, and one by DP-DMD, which is made to keep its
teacher's diversity. Then all of them draw {prompts} prompts with {seeds} seeds each, and a page shows how they compare.
It takes about four minutes on two CPU cores. Stop it with Ctrl-C; the same command goes on from there.
Everything is written to {out}."""
WORLD = "scenes"
NUM_SEEDS = 16
NUM_FEW_STEPS = 4


def demo_arms(seed: int = 0, updates: int | None = None) -> list[Arm]:
    """The arms of the demo: teacher, teacher at four steps, DMD and DP-DMD, with equal forwards and the same
    prompts and noise.

    updates: number of student updates; default: that of the shipped recipes.
    """
    overrides = {"train.seed": seed} | ({} if updates is None else {"train.num_updates": updates})
    return [
        Arm(REFERENCE, model=WORLD),
        Arm(FEW_STEPS, model=WORLD, sampling=("--num-inference-steps", str(NUM_FEW_STEPS))),
        Arm("dmd", f"{WORLD}_dmd", overrides),
        Arm("dp_dmd", f"{WORLD}_dp_dmd", overrides),
    ]


def run_demo(
    out: str | Path = "runs/demo", *, seed: int = 0, updates: int | None = None, open_browser: bool = False
) -> Path:
    """Train, sample and score the arms of the demo, write the results to `out`, and print a table of them.

    Writes report.html, metrics.json and overview.png; returns the path of the report.
    A run that was interrupted continues when it is called again. Runs with the same seed give the same metrics.
    Raises OSError, before training, if one of these files cannot be written.
    """
    out = make_folder(out, "--out")
    for name in ("metrics.json", "report.html", "overview.png"):
        require_writable(out / name)
    prompts = world_named(WORLD).evaluation_prompts()
    logger.info(IN_WORDS.format(prompts=len(prompts), seeds=NUM_SEEDS, out=out))
    runs = [Run(arm, out / arm.name, seed if arm.recipe else None) for arm in demo_arms(seed, updates)]
    rows = run_and_measure(
        runs,
        out,
        prompts=prompts,
        images_per_prompt=NUM_SEEDS,
        jobs=1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1),
    )
    write_json(out / "metrics.json", {"arms": {run.arm.name: row for run, row in zip(runs, rows, strict=True)}})
    report = report_from_runs([out], out / "report.html", title="DMD and DP-DMD on the built-in teacher")
    write_overview_png(out / "overview.png", read_runs([out]))
    print(f"\n{table(summarise_arms(runs, rows))}\n\n{verdict_sentence([out])}\nThe page: {report.resolve()}")
    if open_browser:
        webbrowser.open(report.resolve().as_uri())
    return report
