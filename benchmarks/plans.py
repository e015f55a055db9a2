"""Ask `dpdmd new` for recipes of the public models on devices of 24, 48 and 80 GiB, and write docs/plans.md.

    python -m benchmarks.plans

This needs no weights, no text encoders and no GPU: the public configurations of the models ship with the package. It
takes half a minute per model and device.
"""

import argparse
from pathlib import Path

from dpdmd.data.prompts import training_prompts
from dpdmd.models.load import planning_adapter
from dpdmd.planning.answer import describe_costs
from dpdmd.planning.cost import network_sizes
from dpdmd.planning.fit import GIB, reserve
from dpdmd.planning.hours import SHARE, card_for, describe_hours
from dpdmd.planning.new import NewRecipe, new_recipe
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import changed_recipe, load_recipe
from dpdmd.store.files import write_text
from dpdmd.store.provenance import surroundings
from tools.recipes import RECIPES

MEMORIES = (24, 48, 80)  # GiB
HEAD = """\
# Plans for large models

What `dpdmd new MODEL --memory GIB` writes for the models of the shipped recipes on one device of 24, 48 and 80 GiB.
Nothing was trained for this page, and no weights and no GPU took part: the numbers are counted.
`python -m benchmarks.plans` made it with torch {torch} and diffusers {diffusers}, from the public configurations of the
models, which ship with the package. A test checks that the networks made from them have the published numbers of
parameters.

| model | parameters | {columns} |
|---|---|{rules}
{rows}

How to read a cell, from left to right:

- "LoRA" means adapters of rank 64 for student and fake score on one frozen backbone; "all" means that all their weights
  are trained.
- "bf16", "int8" or "nf4" is the precision of the frozen weights. `int8` needs `pip install "dpdmd[int8]"` (torchao),
  `nf4` needs `pip install "dpdmd[nf4]"` (bitsandbytes).
- "4 x 8" is prompts per micro-batch times micro-batches per update.
- "checkpointing" means that activations are recomputed in the backward pass.
- "no pictures" means that validation is off.
- Then comes the memory needed, and the time of all {updates} updates. The time is a calculation: the operations of the
  denoising network at {share} of the peak of one {cards}.

## How it is counted

- Weights, moving average and AdamW's moments: by formula.
- Activations and gradients: by running one micro-batch of an update on torch's meta device, where tensors have no data.
- Validation pictures: the autoencoder and one image.
- Operations: multiplications and additions of one network call on the meta device, times the calls of an update.

Tests compare the memory with measured peaks of small models of every family, on a CPU, and the operations with the
closed form. {reserve} GiB of {memories} are left free for CUDA's context, the workspaces of libraries, and
fragmentation. That is an assumption which no GPU has confirmed yet, and so is the share of the peak. Text encoders are
not counted: they are on the device only before the networks are, in bf16, unless `data.cache` is `"none"`. A card may
have a little less memory than its name says.

## An answer of `dpdmd plan`

```
$ dpdmd plan sd35_medium_lora_24gb --memory 24
{answer}
```

The same recipe with all weights, on one such device:

```
$ dpdmd plan sd35_medium_lora_24gb --memory 24 --set lora.roles=[]
...
{all_weights}
```
"""


def cell(written: NewRecipe, hours: str) -> str:
    """What runs on a device, in a few words."""
    plan, total = written.plan, f"{written.need.total / GIB:.1f} GiB"
    if not written.fits:
        return f"does not fit: {total}"
    words = ["LoRA" if plan.lora.roles else "all", plan.teacher.dtype]
    words.append(f"{plan.data.batch_size} x {plan.data.accumulation}")
    if plan.compute.gradient_checkpointing:
        words.append("checkpointing")
    if not plan.validation.every:
        words.append("no pictures")
    return f"{', '.join(words)}: {total}, {hours}"


def row(model: str) -> str:
    """The line of one model."""
    adapter, cells = planning_adapter(model), []
    for memory in MEMORIES:
        written = new_recipe(model, adapter, memory=memory * GIB, name="my")
        cells.append(cell(written, describe_hours(written.plan, adapter, memory).partition(" for ")[0]))
    number = network_sizes(written.plan, adapter).network
    return f"| {model} | {number / 1e9:.2f} x 10^9 | {' | '.join(cells)} |"


def answer(name: str, *sets: str) -> str:
    """What `dpdmd plan NAME --memory 24` prints."""
    recipe = load_recipe(name, sets)
    adapter = planning_adapter(recipe.model.teacher)
    prompts = training_prompts(recipe.data.sources)
    return describe_costs(lambda more: resolve(changed_recipe(recipe, more), adapter), adapter, prompts, 24 * GIB)


def main() -> None:
    """Plan every model for every device and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs", "plans.md"), help="Markdown file to write")
    out = parser.parse_args().out
    rows = []
    for model in sorted({shipped.model for shipped in RECIPES.values()}):
        rows.append(row(model))
        print(rows[-1], flush=True)
    versions = surroundings()["versions"]
    all_weights = answer("sd35_medium_lora_24gb", "lora.roles=[]").splitlines()
    first = next(i for i, line in enumerate(all_weights) if line.startswith("at the peak"))
    cards = [card_for(memory).name for memory in MEMORIES]
    page = HEAD.format(
        torch=versions["torch"],
        diffusers=versions["diffusers"],
        reserve=", ".join(f"{reserve(memory * GIB) / GIB:.1f}" for memory in MEMORIES),
        memories=", ".join(map(str, MEMORIES)),
        columns=" | ".join(f"{memory} GiB" for memory in MEMORIES),
        rules="---|" * len(MEMORIES),
        rows="\n".join(rows),
        updates=load_recipe("sd35_medium_lora_24gb").train.num_updates,
        share=f"{SHARE:.0%}",
        cards=f"{', '.join(cards[:-1])} and {cards[-1]}",
        answer=answer("sd35_medium_lora_24gb"),
        all_weights="\n".join(all_weights[first:]),
    )
    write_text(out, page)


if __name__ == "__main__":
    main()
