"""Measure seconds and memory of an update on this machine, for `dpdmd plan --calibrate`."""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from dpdmd.data.prompts import COLUMN, training_prompts
from dpdmd.models.base import ModelAdapter
from dpdmd.planning.fit import GIB, has_gpu
from dpdmd.recipe.plan import Plan
from dpdmd.store.files import write_text
from dpdmd.training.parts import build_parts
from dpdmd.training.trainer import Trainer


def describe_calibration(plan: Plan, adapter: ModelAdapter) -> str:
    """Time and memory of an update measured on this machine, and the hours of the whole run, as one line."""
    seconds, peak = calibrate(plan, adapter)
    name = torch.cuda.get_device_name(0) if has_gpu() else "CPU"
    memory = "" if peak is None else f", {peak / GIB:.2f} GiB allocated at its peak"
    hours = seconds * plan.budget.num_updates / 3600
    return (
        f"measured on this machine ({name}): {seconds:.2f} s per update{memory}; {hours:.1f} h for "
        f"{plan.budget.num_updates}, not counting prompt encoding, validation and checkpoints"
    )


def calibrate(plan: Plan, adapter: ModelAdapter, number: int = 2) -> tuple[float, int | None]:
    """Seconds per update, and the peak of bytes allocated on a GPU (None without one).

    Trains for `number` + 1 updates on the longest prompts, of which the first is not timed; no run is written.
    """
    on_gpu = has_gpu()
    prompts = sorted(training_prompts(plan.data.prompts, plan.data.column), key=len)
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "prompts.jsonl")
        write_text(few, "\n".join(json.dumps({COLUMN: prompt}) for prompt in prompts[-plan.data.batch_size :]))
        plan = replace(plan, data=replace(plan.data, prompts=((str(few), 1.0),), column=COLUMN))
        trainer = Trainer(plan, build_parts(plan, adapter))
        trainer.iterate()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(number):
            trainer.iterate()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / number
    return seconds, torch.cuda.max_memory_allocated() if on_gpu else None
