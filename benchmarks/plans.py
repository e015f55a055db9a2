"""Run `dpdmd plan` for the large models on devices of 24, 48 and 80 GiB, and write docs/plans.md.

    python -m benchmarks.plans

This needs no weights, no text encoders and no GPU: configurations.json contains the networks' public configurations. It
takes one to two minutes per model.
"""

import argparse
import json
import tempfile
from itertools import groupby
from pathlib import Path

from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import network_sizes
from dpdmd.planning.fit import GIB, Need, counter, describe_fit, reserve, savings
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import write_text
from dpdmd.store.provenance import surroundings

CONFIGURATIONS = Path(__file__).with_name("configurations.json")
MEMORIES = (24, 48, 80)  # GiB
NAMES = {
    "sd35_medium_dp_dmd": "Stable Diffusion 3.5 Medium",
    "sdxl_dp_dmd": "Stable Diffusion XL",
    "flux_dev_dp_dmd": "FLUX.1-dev",
    "qwen_image_dp_dmd": "Qwen-Image",
}
HEAD = """\
# Plans for large models

What it takes to train the shipped recipes on one device of 24, 48 and 80 GiB. Nothing was trained for this page, and
no weights and no GPU took part: the numbers are counted. `python -m benchmarks.plans` made it with torch {torch} and
diffusers {diffusers}, from `benchmarks/configurations.json`, which follows the public configurations of the models. A
test checks that the networks made from it have the published numbers of parameters.

Every plan takes 32 samples per update. Where a recipe does not fit as it is, `dpdmd plan` adds settings until it does.

| recipe | {columns} |
|---|{rules}
{rows}

How to read a cell, from left to right:

- "LoRA" means adapters of rank 64 for student and fake score on one frozen backbone; "all" means that all their weights
  are trained.
- "bf16", "int8" or "nf4" is the precision of the frozen backbone. `int8` needs `pip install "dpdmd[int8]"` (torchao),
  `nf4` needs `pip install "dpdmd[nf4]"` (bitsandbytes).
- "4 x 8" is prompts per micro-batch times micro-batches per update.
- "checkpointing" means that activations are recomputed in the backward pass.
- "no pictures" means that validation is off.
- Last comes the memory needed.

What three full copies would take is in the lines above `lora.roles` below.

## How it is counted

- Weights, moving average and AdamW's moments: by formula.
- Activations and gradients: by running one micro-batch of an update on torch's meta device, where tensors have no data.
- Validation pictures: the autoencoder and one image.

Tests compare these counts with measured peaks of small models of every family, on a CPU. {reserve} GiB of {memories}
are left free for CUDA's context, the workspaces of libraries, and fragmentation. That is an assumption which no GPU has
confirmed yet. Text encoders are not counted: they are on the device only before the networks are, in bf16, unless
`data.cache` is `"none"`. A card may have a little less memory than its name says.

Below are the last lines that each command prints. "..." stands for lines that the command before it printed as well.
"""
SECTION = """
## {name}

{parameters:.2f} billion parameters, {height} x {width} pixels.

{plans}
"""


def write_configuration(name: str, folder: Path) -> None:
    """Write the JSON files of a model's parts, as in its repository."""
    for file, content in json.loads(CONFIGURATIONS.read_text())[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / file, json.dumps(content))


def plan_devices(name: str) -> tuple[list[str], str]:
    """The table cells (one per device) and the section of one shipped recipe."""
    with tempfile.TemporaryDirectory() as folder:
        write_configuration(name, Path(folder))
        adapter = load_adapter(folder)

        def plan_with(further: tuple[str, ...]) -> Plan:
            return resolve(load_recipe(name, [f"model.teacher={folder}", *further]), adapter)

        plan, count = plan_with(()), counter(adapter)
        cells, texts, shown = [], [], []
        for memory in MEMORIES:
            found = savings(plan_with, count, memory * GIB)
            final = plan_with(tuple(setting for settings, _ in found for setting in settings))
            cells.append(_cell(final, count(final), memory))
            answer = describe_fit(count(plan), memory * GIB, found).splitlines()
            texts.append(f"```\n$ dpdmd plan {name} --memory {memory}\n{_new_lines(answer, shown)}\n```")
            shown = answer
        section = SECTION.format(
            name=NAMES[name],
            height=plan.image_size[0],
            width=plan.image_size[1],
            parameters=network_sizes(plan, adapter).network / 1e9,
            plans="\n\n".join(texts),
        )
    return cells, section


def _new_lines(answer: list[str], shown: list[str]) -> str:
    """The answer, with "..." in place of lines that were shown before."""
    lines = ["..." if line in shown else line for line in answer]
    return "\n".join(line for line, _ in groupby(lines))


def _cell(plan: Plan, need: Need, memory: int) -> str:
    """What runs on a device of `memory` GiB, in a few words."""
    total = f"{need.total / GIB:.1f} GiB"
    if need.total > memory * GIB - reserve(memory * GIB):
        return f"does not fit: {total}"
    words = ["LoRA" if plan.lora.roles else "all", plan.teacher.dtype]
    words.append(f"{plan.data.batch_size} x {plan.data.accumulation}")
    if plan.compute.gradient_checkpointing:
        words.append("checkpointing")
    if not plan.validation.every:
        words.append("no pictures")
    return f"{', '.join(words)}: {total}"


def main() -> None:
    """Plan every model for every device and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs", "plans.md"), help="Markdown file to write")
    out = parser.parse_args().out
    rows, sections = [], []
    for name in NAMES:
        cells, section = plan_devices(name)
        rows.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
        sections.append(section)
        print(rows[-1], flush=True)
    versions = surroundings()["versions"]
    head = HEAD.format(
        torch=versions["torch"],
        diffusers=versions["diffusers"],
        reserve=", ".join(f"{reserve(memory * GIB) / GIB:.1f}" for memory in MEMORIES),
        memories=", ".join(map(str, MEMORIES)),
        columns=" | ".join(f"{memory} GiB" for memory in MEMORIES),
        rules="---|" * len(MEMORIES),
        rows="\n".join(rows),
    )
    write_text(out, head + "".join(sections))


if __name__ == "__main__":
    main()
