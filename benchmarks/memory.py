"""The peak of an update on a CPU against what `dpdmd plan` says, for combinations of model, precision and optimiser.

    python -m benchmarks.memory

Each combination trains a random network of 50 to 120 million parameters in a process of its own: a published
configuration with fewer or narrower layers, and random embeddings of 77 tokens. Measured is the most that the process
has by itself in an update, above what it had before it loaded the model (`benchmarks.sharding.own_bytes`). What it had
before includes the libraries: an update of the built-in teacher has used all of them. Frozen weights have been copied
out of their files, and a step with gradients of zero has made the optimisers' state. glibc returns what is freed to the
kernel at once (MALLOC_MMAP_THRESHOLD_), so that fragmentation, for which the plan leaves some memory free, is not
measured. Linux only.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.bf16_products import are_slow, products_in_fp32
from benchmarks.cycle import merged
from benchmarks.full_size_phases import PROMPTS, opened
from benchmarks.pareto_page import fill, markdown
from benchmarks.random_pipeline import write_weights
from benchmarks.sharding import PeakMemory, own_bytes
from benchmarks.trainers import new_trainer
from dpdmd.method.denoiser import Condition
from dpdmd.models.base import ModelAdapter, empty_network
from dpdmd.models.load import load_adapter, published_models
from dpdmd.planning.cost import num_parameters
from dpdmd.planning.fit import memory_need
from dpdmd.recipe.optimisers import missing_optimiser
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import read_json, write_json, write_text
from dpdmd.store.provenance import surroundings
from dpdmd.training.parts import build_parts
from dpdmd.training.trainer import Trainer
from dpdmd.training.updater import Updater

RESULTS, PAGE = Path("benchmarks", "results", "memory.json"), Path("docs", "performance.md")
NUM_TOKENS = 77  # of a prompt
MIB = 2**20
# Published configuration, and what is smaller here.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": (
        "stabilityai/stable-diffusion-3.5-medium",
        {
            "num_layers": 3,
            "num_attention_heads": 12,
            "caption_projection_dim": 768,
            "pos_embed_max_size": 64,
            "dual_attention_layers": [0, 1],
        },
    ),
    "sdxl": (
        "stabilityai/stable-diffusion-xl-base-1.0",
        {
            "block_out_channels": [96, 192, 384],
            "attention_head_dim": [2, 3, 6],
            "transformer_layers_per_block": [1, 1, 2],
        },
    ),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", {"block_out_channels": [128, 256, 256, 512]}),
    "pixart": ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", {"num_layers": 3}),
    "flux": (
        "black-forest-labs/FLUX.1-dev",
        {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 6},
    ),
    "sana": ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", {"num_layers": 1}),
}
BF16 = {"train": {"precision": "bf16"}}
ADAPTERS = merged(BF16, {"lora": {"roles": ["student", "fake_score"], "rank": 64}})
BF16_BASE, FP8_BASE = ({"model": {"dtype": dtype}} for dtype in ("bf16", "fp8"))
RECOMPUTED = {"train": {"gradient_checkpointing": True}}
EMA = {"train": {"ema_decay": 0.99}}


@dataclass(frozen=True)
class Combination:
    """A family of FAMILIES, settings of the recipe, pixels of a side."""

    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    size: int = 128


COMBINATIONS = {
    "all weights": Combination("sd3"),
    "all weights, recomputed, moving average": Combination("sd3", merged(RECOMPUTED, EMA)),
    "all weights, bf16": Combination("sd3", BF16),
    "all weights, 8-bit moments": Combination("sd3", {"train": {"optimiser": "adamw_8bit"}}),
    "all weights, Adafactor, two micro-batches": Combination(
        "sd3", {"train": {"optimiser": "adafactor", "accumulation": 2}}
    ),
    "all weights, one random step, batch of 4": Combination(
        "sd3", {"train": {"random_step": True, "batch_size": 4}, "student": {"num_steps": 4}}
    ),
    "adapters": Combination("sd3", merged(ADAPTERS, BF16_BASE), 256),
    "adapters on fp8": Combination("sd3", merged(ADAPTERS, FP8_BASE)),
    "adapters on fp8, recomputed, batch of 2": Combination(
        "sd3", merged(ADAPTERS, FP8_BASE, RECOMPUTED, {"train": {"batch_size": 2}})
    ),
    "U-Net, all weights": Combination("sdxl"),
    "U-Net, adapters, recomputed": Combination("sdxl", merged(ADAPTERS, BF16_BASE, RECOMPUTED), 256),
    "small U-Net, all weights, moving average, batch of 2": Combination(
        "sd15", merged(EMA, {"train": {"batch_size": 2}})
    ),
    "PixArt, all weights, bf16, recomputed": Combination("pixart", merged(BF16, RECOMPUTED)),
    "PixArt, adapters": Combination("pixart", merged(ADAPTERS, BF16_BASE)),
    "FLUX, adapters on fp32": Combination("flux", ADAPTERS),
    "FLUX, adapters on fp8": Combination("flux", merged(ADAPTERS, FP8_BASE)),
    "Sana, a copy for the student alone": Combination(
        "sana", {"lora": {"roles": ["fake_score"], "rank": 64}, "train": {"random_step": True}}
    ),
}


def write_teacher(family: str, out: Path, changes: dict[str, Any] | None = None) -> None:
    """A family's network with random weights in the folder `out`.

    changes: to its published configuration; default: those of FAMILIES.
    """
    model, smaller = FAMILIES[family]
    shutil.copytree(published_models()[model], out)
    (config,) = (path for name in ("transformer", "unet") if (path := out / name / "config.json").exists())
    write_json(config, read_json(config) | (smaller if changes is None else changes))
    network = empty_network(load_adapter(str(out)))
    write_weights(network, config.parent, "diffusion_pytorch_model", seed=0)
    index = read_json(out / "model_index.json")
    write_json(out / "model_index.json", index | {config.parent.name: ["diffusers", type(network).__name__]})


def recipe_of(combination: Combination, teacher: Path | str, work: Path) -> Recipe:
    """Two student steps, and an anchor of one teacher step: every kind of call that an update has, each few times."""
    (work / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    model = {"teacher": str(teacher), "height": combination.size, "width": combination.size}
    base = {
        "model": model,
        "student": {"num_steps": 2},
        "objective": {"name": "dp_dmd", "anchor": {"coarse_steps": 1}},
        "data": {"prompts": str(work / "prompts.txt"), "cache": str(work / "cache")},
        "train": {"num_updates": 1, "batch_size": 1, "fake_updates": 1, "reuse_samples": "student"},
        "validation": {"every": 0},
        "output": {"folder": str(work / "run")},
    }
    return Recipe.model_validate(merged(base, combination.settings))


def short_texts(adapter: ModelAdapter) -> None:
    """Let the longest prompts have NUM_TOKENS tokens, so that weights and not texts fill the memory."""
    blank = adapter.blank_condition

    def shorter(num_prompts: int) -> Condition:
        tensors = blank(num_prompts).tensors
        longest = next(t.shape[1] for t in tensors.values() if t.ndim == 3)
        return Condition({n: t[:, :NUM_TOKENS] if t.shape[1] == longest else t for n, t in tensors.items()})

    adapter.blank_condition = shorter  # pyright: ignore[reportAttributeAccessIssue]


def out_of_files(network: nn.Module) -> None:
    """Copy weights out of their files, which stay mapped into memory on a CPU, as a move to a device does."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def measure(combination: Combination, teacher: Path, work: Path) -> dict[str, Any]:
    """The peak of an update in this process, and the plan's."""
    with products_in_fp32() if are_slow() else nullcontext():
        scenes = Combination("scenes", combination.settings, size=32)
        new_trainer(recipe_of(scenes, "scenes", work)).iterate()
        _give_back()
        before, started = own_bytes(), time.perf_counter()
        adapter = opened(teacher)
        short_texts(adapter)
        plan = resolve(recipe_of(combination, teacher, work), adapter)
        trainer = Trainer(plan, build_parts(plan, adapter))
        out_of_files(trainer.network("teacher"))
        for updater in trainer.updaters.values():
            make_state(updater)
        _give_back()
        settled = own_bytes()
        with PeakMemory() as memory:
            trainer.iterate()
        seconds = time.perf_counter() - started
    need = memory_need(plan, adapter)
    measured = settled - before + memory.added
    return {
        "parameters": num_parameters(adapter),
        "measured": measured,
        "planned": need.total,
        "ratio": need.total / measured,
        "settled": settled - before,
        "stays": need.state,
        "seconds": seconds,
    }


def make_state(updater: Updater) -> None:
    """Let an optimiser have its state, by a step that changes nothing."""
    for parameter in updater.parameters:
        parameter.grad = torch.zeros_like(parameter)
    updater.optimizer.step()
    updater.optimizer.zero_grad(set_to_none=True)


def _give_back() -> None:
    """Return what is free to the kernel."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def in_process(name: str, teacher: Path, work: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    environment = os.environ | {
        "DPDMD_CACHE": str(work / "cache"),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, "--teacher", str(teacher), "--work", str(work)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(names: list[str]) -> dict[str, Any]:
    """The rows of the combinations with these names; one whose optimiser is not installed says so."""
    rows: dict[str, Any] = {}
    for family in dict.fromkeys(COMBINATIONS[name].family for name in names):
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            teacher = Path(folder) / "teacher"
            write_teacher(family, teacher)
            for number, name in enumerate(name for name in names if COMBINATIONS[name].family == family):
                optimiser = COMBINATIONS[name].settings.get("train", {}).get("optimiser", "adamw")
                if (missing := missing_optimiser(optimiser)) is not None:
                    rows[name] = {"not measured": missing}
                else:
                    work = Path(folder) / str(number)
                    work.mkdir()
                    rows[name] = in_process(name, teacher, work)
                print(f"{name}: {rows[name]}", flush=True)
    return rows


def table(rows: dict[str, Any]) -> str:
    """The rows in Markdown, in the order of COMBINATIONS."""
    cells = []
    for name in (name for name in COMBINATIONS if name in rows):
        row, family = rows[name], COMBINATIONS[name].family
        if "measured" not in row:
            cells.append([family, name, "", "", "not measured: bitsandbytes is not installed", ""])
            continue
        sizes = (f"{row[key] / MIB:.0f}" for key in ("measured", "planned"))
        cells.append([family, name, f"{row['parameters'] / 1e6:.0f}", *sizes, f"{row['ratio']:.2f}"])
    return markdown(["family", "combination", "10^6 parameters", "measured, MiB", "planned, MiB", "ratio"], cells)


def main() -> None:
    """Measure all combinations, or those named; write the file and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all; others keep their results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file with the table")
    for hidden in ("--one", "--teacher", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(COMBINATIONS[arguments.one], Path(arguments.teacher), Path(arguments.work))))
        return
    if unknown := set(arguments.names) - set(COMBINATIONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {'; '.join(COMBINATIONS)}")
    torch.set_num_threads(1)
    old = read_json(arguments.results)["rows"] if arguments.results.is_file() else {}
    rows = old | measured(arguments.names or list(COMBINATIONS))
    write_json(arguments.results, {"rows": rows, "setup": surroundings("python -m benchmarks.memory")})
    write_text(arguments.page, fill(arguments.page.read_text(encoding="utf-8"), {"rows": table(rows)}, marker="memory"))


if __name__ == "__main__":
    main()
