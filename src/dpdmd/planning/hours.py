"""Hours of a training by calculation: operations counted on torch's meta device, at a share of a card's peak."""

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpdmd.models.base import ModelAdapter, denoiser
from dpdmd.planning.memory import LiveShapes, blank_autoencoder, blank_call
from dpdmd.recipe.calls import VALIDATION_SHARE, calls_per_picture, forwards_per_update, num_validations
from dpdmd.recipe.plan import Plan

SHARE = 0.35  # of a card's peak that training reaches: an assumption, no GPU has measured it here
SLACK = 1.5  # GiB by which a card may have less than its name says


@dataclass(frozen=True)
class Card:
    """A GPU as NVIDIA's data sheets have it: memory in GiB, and its peak in 10^12 operations per second, dense.

    link: gigabytes per second that it sends to another one of its machine, by NVLink or else by PCIe 4.0.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    link: float


CARDS = (
    Card("GeForce RTX 4090", 24, bf16=165.2, fp32=82.6, link=32.0),
    Card("L40S", 48, bf16=362.0, fp32=91.6, link=32.0),
    Card("A100 80GB", 80, bf16=312.0, fp32=19.5, link=300.0),
    Card("H200", 141, bf16=989.5, fp32=66.9, link=450.0),
)


def card_for(gib: float) -> Card:
    """The smallest card with so much memory, else the largest."""
    return next((card for card in CARDS if card.memory + SLACK >= gib), CARDS[-1])


def call_operations(plan: Plan, adapter: ModelAdapter) -> tuple[int, int]:
    """Operations (multiplications and additions) of one network call for one sample: forward, and backward after it.

    With gradient checkpointing the backward pass includes what it computes again. The number format changes nothing.
    """
    plan = replace(plan, teacher=replace(plan.teacher, dtype="fp32"))
    roles, noise, cond = blank_call(plan, adapter, batch_size=1)
    denoise = denoiser(adapter, roles, "student", plan.embedded_guidance["student"])
    with LiveShapes(), FlopCounterMode(display=False) as counter:
        x0 = denoise(noise, plan.student.grid.time(0, noise), cond).x0
        forward = counter.get_total_flops()
        x0.mean().backward()
    return forward, counter.get_total_flops() - forward


def update_operations(plan: Plan, adapter: ModelAdapter) -> float:
    """Operations of one student update and its fake-score updates in one process, of the denoising network alone.

    Of several sizes it is the mean.
    """
    num_forwards, num_backwards = forwards_per_update(plan)
    mean = 0.0
    for size, at in zip(plan.sizes, plan.at_each_size, strict=True):
        forward, backward = call_operations(at, adapter)
        mean += size.share * (num_forwards * forward + num_backwards * backward)
    return plan.data.batch_size * plan.data.accumulation * mean


def decoding_operations(plan: Plan, adapter: ModelAdapter) -> int:
    """Operations of the autoencoder for one picture."""
    blank, latents = blank_autoencoder(plan, adapter)
    with LiveShapes(), FlopCounterMode(display=False) as counter, torch.no_grad():
        blank.decode(latents)
    return counter.get_total_flops()


def validation_share(plan: Plan, adapter: ModelAdapter) -> tuple[float, float]:
    """Operations of validation, as shares of those of the whole training: (once, in all validations)."""
    (forward, _), decoding = call_operations(plan, adapter), decoding_operations(plan, adapter)
    once, each = calls_per_picture(plan)
    training = plan.budget.num_updates * update_operations(plan, adapter) / plan.validation.num_pictures
    students = 2 if plan.optimiser.ema_decay else 1
    share = num_validations(plan) * (each * forward + students * decoding) / training
    return (once * forward + decoding) / training, share


def describe_validation(plan: Plan, adapter: ModelAdapter) -> str:
    """How often pictures are drawn, and the share of training that it takes by operations, as one line."""
    validation = plan.validation
    if not validation.every and validation.is_chosen:
        return "off"
    if not validation.every:
        return (
            f"off, since one would take more than {VALIDATION_SHARE:.0%} of such a short training; validation.every = "
            f"{plan.budget.num_updates} looks at the last student all the same"
        )
    if not num_validations(plan):
        return f"none: the {plan.budget.num_updates} updates are fewer than validation.every ({validation.every})"
    once, share = validation_share(plan, adapter)
    text = (
        f"{validation.num_pictures} pictures every {validation.every} updates and after the last, {percent(share)} of "
        f"the operations of training, and {percent(once)} once for the teacher's"
    )
    too_much = share > VALIDATION_SHARE and num_validations(plan) > 1
    return text + (f"; a larger validation.every than {validation.every} takes less" if too_much else "")


def percent(share: float) -> str:
    """A share in per cent, with two digits below 10."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def describe_hours(plan: Plan, adapter: ModelAdapter, gib: float) -> str:
    """How long the whole run takes on a card with `gib` GiB, as one line that says that it is a calculation."""
    card, operations = card_for(gib), update_operations(plan, adapter)
    name, peak = ("bf16", card.bf16) if plan.compute.in_bf16 else ("fp32", card.fp32)
    seconds = operations / (SHARE * peak * 1e12)
    return (
        f"{hours(seconds * plan.budget.num_updates)} for {plan.budget.num_updates} updates of "
        f"{operations / 1e12:.3g} x 10^12 operations, calculated for one {card.name} at {SHARE:.0%} of its "
        f"{peak:g} x 10^12 per second in {name}; prompt encoding, validation and checkpoints come on top"
    )


def hours(seconds: float) -> str:
    """A duration in words: seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
