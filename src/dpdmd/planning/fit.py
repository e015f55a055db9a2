"""Whether a recipe fits a device, and settings that make it fit, for `dpdmd plan`."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import torch

from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import gathered_bytes, moved_bytes, network_sizes, state_bytes
from dpdmd.planning.memory import peak_bytes, picture_bytes
from dpdmd.recipe.plan import DataPlan, Plan

GIB = 2**30
Settings = tuple[str, ...]  # the values of --set
CHECKPOINTING = ("train.gradient_checkpointing=true",)
OPTIMISERS = (("train.optimiser=adamw_8bit",), ("train.optimiser=adamw_offloaded",))


@dataclass(frozen=True)
class Need:
    """Bytes on one device: `state` stays; `peak` is the most that is added to it at a time, `when` says when."""

    state: int
    peak: int
    when: str = "in an update"

    @property
    def total(self) -> int:
        return self.state + self.peak


def memory_need(plan: Plan, adapter: ModelAdapter, num_devices: int = 1) -> Need:
    """The need of one process of `num_devices`, among which `train.shard` divides what stays and gradients,
    at the largest of the sizes.

    A fused AdamW step needs no memory but gradients and moments; offloaded ones come for one weight at a time.
    """
    plan = plan.largest
    sizes = network_sizes(plan, adapter)
    state = state_bytes(plan, sizes)
    gradients = state.pop("gradients")  # part of the peak
    number = num_devices if plan.compute.shard else 1
    if number == 1:
        update = peak_bytes(plan, adapter)
    else:
        # With accumulation all gradients are there from the first moment to the last.
        accumulating = replace(plan, data=replace(plan.data, accumulation=max(2, plan.data.accumulation)))
        update = peak_bytes(accumulating, adapter) - gradients + gradients // number + gathered_bytes(adapter)
    update = max(update, gradients // number + moved_bytes(plan, sizes))
    peaks = {"in an update": update, "in drawing validation pictures": picture_bytes(plan, adapter)}
    when = max(peaks, key=lambda name: peaks[name])
    return Need(sum(state.values()) // number, peaks[when], when)


def reserve(memory: int) -> int:
    """Bytes of a device to leave free: 1 GiB for the driver's context and workspaces, 1/20 for fragmentation.

    An assumption: neither has been measured here.
    """
    return min(memory, GIB + memory // 20)


def counter(adapter: ModelAdapter, num_devices: int = 1) -> Callable[[Plan], Need]:
    """`memory_need` with a cache, since a large model takes seconds."""
    known: dict[str, Need] = {}

    def count(plan: Plan) -> Need:
        key = repr(plan.settings)
        if key not in known:
            known[key] = memory_need(plan, adapter, num_devices)
        return known[key]

    return count


def savings(
    plan_with: Callable[[Settings], Plan], count: Callable[[Plan], Need], memory: int, num_blocks: int
) -> list[tuple[Settings, Need]]:
    """Settings that lower the need, cumulative, until it fits a device of `memory` bytes or none is left.

    The setting that costs least is taken first. At the end another optimiser is left out again if later settings do
    without it, the micro-batch raised again as far as it fits, and as few blocks recomputed as memory allows. Settings
    that save nothing, or that the recipe's other settings exclude, are left out. plan_with: the plan with further
    settings. count: a plan's `memory_need`. num_blocks: of the network.
    """
    found: list[tuple[Settings, Need]] = []
    plan, available = plan_with(()), memory - reserve(memory)
    need = count(plan)

    def try_on(settings: Settings) -> tuple[Plan, Need] | None:
        try:
            changed = plan_with((*chain.from_iterable(taken for taken, _ in found), *settings))
        except ValueError:
            return None
        return None if changed.settings == plan.settings else (changed, count(changed))

    sizes = _batch_sizes(plan.data)
    left = _switches(sizes, plan)
    while need.total > available:
        for settings in left:
            tried = try_on(settings)
            if tried is not None and tried[1].total < need.total:
                break
        else:
            return found
        left.remove(settings)
        plan, need = tried
        found.append((settings, need))
    kept = [taken for taken, _ in found if taken not in OPTIMISERS]
    if len(kept) < len(found):
        plans = [plan_with(tuple(chain.from_iterable(kept[: i + 1]))) for i in range(len(kept))]
        if plans and count(plans[-1]).total <= available:
            plan, found = plans[-1], [(taken, count(each)) for taken, each in zip(kept, plans, strict=True)]
    if any(taken == sizes[-1] for taken, _ in found):
        for settings in sizes[:-1]:
            tried = try_on(settings)
            if tried is not None and tried[1].total <= available:
                found.append((settings, tried[1]))
                break
    if any(taken == CHECKPOINTING for taken, _ in found):

        def with_blocks(number: int) -> tuple[Settings, Need] | None:
            settings = (f"train.gradient_checkpointing={number or 'false'}",)
            tried = try_on(settings)
            return None if tried is None else (settings, tried[1])

        found += _fewest(with_blocks, num_blocks, available, found[-1][1])
    return found


def _fewest(
    with_blocks: Callable[[int], tuple[Settings, Need] | None], num_blocks: int, available: int, need: Need
) -> list[tuple[Settings, Need]]:
    """The setting with the fewest recomputed blocks that fits, where all of `num_blocks` do and need `need`.

    The need falls nearly evenly with the number of blocks: secants, in turn with halving, take a few counts.
    """
    best: list[tuple[Settings, Need]] = []
    fits, number = (num_blocks, need.total), 0
    too_much: tuple[int, int] | None = None
    halve = False
    while (tried := with_blocks(number)) is not None:
        total = tried[1].total
        if total <= available:
            best, fits = [tried], (number, total)
        else:
            too_much = (number, total)
        if too_much is None or fits[0] - too_much[0] <= 1:
            break
        share = (available - fits[1]) / max(1, too_much[1] - fits[1])
        number = fits[0] - int((0.5 if halve else share) * (fits[0] - too_much[0]))
        number, halve = min(max(number, too_much[0] + 1), fits[0] - 1), not halve
    return best


def _switches(batch_sizes: list[Settings], plan: Plan) -> list[Settings]:
    """Settings that save memory, cheapest first: they cost time, precision, student capacity, pictures.

    nf4 comes last, since int8 is nearer to the teacher's own weights. AdamW's moments count where all weights of a role
    are trained: they take 8 bits, or if that is too much stay in the CPU's memory, at the price of time.
    """
    moments = OPTIMISERS if plan.optimiser.optimiser == "adamw" and len(set(plan.lora.roles)) < 2 else ()
    return [
        ("train.precision=bf16",),
        CHECKPOINTING,
        batch_sizes[-1],
        ("model.dtype=bf16",),
        *moments,
        ('lora.roles=["student", "fake_score"]',),
        ("model.dtype=int8",),
        ("validation.every=0",),
        ("model.dtype=nf4",),
    ]


def _batch_sizes(data: DataPlan) -> list[Settings]:
    """From the recipe's micro-batch down to one prompt, with the same number of samples per update."""
    size, samples = data.batch_size, data.batch_size * data.accumulation
    sizes = [n for n in range(size, 0, -data.samples_per_prompt) if size % n == 0]
    return [(f"train.batch_size={n}", f"train.accumulation={samples // n}") for n in sizes]


def has_gpu() -> bool:
    """Whether this machine has a GPU."""
    return torch.cuda.is_available()


def device_memory() -> int:
    """Bytes of the GPU's memory, else of this machine's."""
    if has_gpu():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_fit(need: Need, memory: int, found: list[tuple[Settings, Need]]) -> str:
    """Whether it fits a device of `memory` bytes, the need after each of the `savings`, all settings in one line."""
    available = memory - reserve(memory)
    lines = [
        f"at the peak, {need.when}: {need.peak / GIB:.2f} GiB, counted on the meta device, on top "
        f"of {need.state / GIB:.2f} GiB that stay, by formula",
        f"{need.total / GIB:.2f} GiB per device: {_verdict(need, available)} in {memory / GIB:.1f} GiB, of which "
        f"{reserve(memory) / GIB:.1f} are left for CUDA's context, workspaces and fragmentation",
    ]
    settings: dict[str, str] = {}
    for taken, smaller in found:
        settings |= {setting.partition("=")[0]: f"--set {shlex.quote(setting)}" for setting in taken}
        quoted = " ".join(f"--set {shlex.quote(setting)}" for setting in taken)
        lines.append(f"  with {quoted}: {smaller.total / GIB:.2f} GiB, {_verdict(smaller, available)}")
    if found and found[-1][1].total <= available:
        lines.append(f"so add {' '.join(settings.values())}")
    elif need.total > available:
        lines.append(
            "not on one such device: take a smaller model.height and model.width, or several devices and train.shard"
        )
    return "\n".join(lines)


def _verdict(need: Need, available: int) -> str:
    return "fits" if need.total <= available else "does not fit"
