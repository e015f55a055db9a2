"""What a training will cost, in words: the answer of `dpdmd plan` and of `dpdmd train --dry-run`."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dpdmd.data.prompts import training_prompts
from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import checkpoint_bytes, describe, embedding_bytes, network_sizes, num_blocks
from dpdmd.planning.fit import GIB, Settings, counter, describe_fit, device_memory, savings
from dpdmd.planning.hours import describe_hours, describe_validation
from dpdmd.planning.traffic import Cluster, describe_traffic
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.teacher import teacher_adapter
from dpdmd.recipe.toml import changed_recipe, load_recipe

logger = logging.getLogger(__name__)


def costs(
    recipe: Recipe | str | Path,
    *,
    overrides: Sequence[str] = (),
    memory: float | None = None,
    cluster: Cluster | None = None,
) -> str:
    """What a training will cost, in words: grids, network calls, memory, disk, hours, validation. Reads no weights.

    recipe: as `dpdmd.train` takes it. overrides: "section.key=value" for a file or name. memory: of the device in GiB;
    default: this machine's. cluster: machines over which `train.shard` spreads the networks, and for which the bytes
    that an update sends are calculated as well. Raises ValueError for a recipe that cannot be used.
    """
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, list(overrides))
    prompts = training_prompts(settings.data.sources, settings.data.column)
    adapter = teacher_adapter(settings.model, planning=True)
    device = device_memory() if memory is None else round(memory * GIB)
    logger.info("Counting what a training of %s needs; a large model takes a minute.", settings.model.teacher)

    def plan_with(further: Settings) -> Plan:
        return resolve(changed_recipe(settings, further), adapter)

    sharing = 1 if cluster is None else cluster.gpus if settings.train.shard == "machine" else cluster.number
    text = describe_costs(plan_with, adapter, prompts, device, sharing)
    return text if cluster is None else f"{text}\n{describe_traffic(plan_with(()), adapter, cluster, device / GIB)}"


def describe_costs(
    plan_with: Callable[[Settings], Plan],
    adapter: ModelAdapter,
    prompts: list[str],
    memory: int,
    num_devices: int = 1,
) -> str:
    """The plan, then prompts, disk, hours, and whether it fits a device of `memory` bytes, with what makes it fit.

    plan_with: the plan with further settings. It reads configurations and no weights.
    """
    plan = plan_with(())
    count = counter(adapter, num_devices)
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
