"""What a training will cost, in words: the answer of `dpdmd plan` and of `dpdmd train --dry-run`."""

from collections.abc import Callable

from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import checkpoint_bytes, describe, embedding_bytes, network_sizes, num_blocks
from dpdmd.planning.fit import GIB, Settings, counter, describe_fit, savings
from dpdmd.planning.hours import describe_hours, describe_validation
from dpdmd.recipe.plan import Plan


def describe_costs(
    plan_with: Callable[[Settings], Plan], adapter: ModelAdapter, prompts: list[str], memory: int
) -> str:
    """The plan, then prompts, disk, hours, and whether it fits a device of `memory` bytes, with what makes it fit.

    plan_with: the plan with further settings. It reads configurations and no weights.
    """
    plan = plan_with(())
    count = counter(adapter)
    different = set(prompts)
    embeddings = len(different) * embedding_bytes(plan, adapter)
    kept = (plan.checkpoint.keep + 1) * checkpoint_bytes(plan, network_sizes(plan, adapter))
    found = savings(plan_with, count, memory, num_blocks(adapter))
    lines = [
        describe(plan, adapter),
        f"prompts: {len(prompts)}, {len(different)} different, at most {embeddings / GIB:.2f} GiB of embeddings",
        f"disk: {(embeddings + kept) / GIB:.2f} GiB at most, for embeddings and checkpoints",
        f"time: {describe_hours(plan, adapter, memory / GIB)}",
        f"validation: {describe_validation(plan, adapter)}",
        describe_fit(count(plan), memory, found),
    ]
    return "\n".join(lines)
