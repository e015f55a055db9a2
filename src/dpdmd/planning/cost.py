"""What a run will cost: network calls per update, bytes on every device; and the whole plan in words."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from dpdmd.method.grids import Grid
from dpdmd.method.roles import TRAINED_ROLES, Roles
from dpdmd.method.terms.anchor import ANCHOR
from dpdmd.models.base import ModelAdapter, empty_network
from dpdmd.models.quantised import block_layers, weight_bytes
from dpdmd.recipe.resolve import Plan
from dpdmd.recipe.schema import Recipe

BYTES = 4  # fp32: trained weights, their gradients and moments
FROZEN_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class NetworkSizes:
    """Numbers of the denoising network: parameters, those of one adapter on it (0 when no role trains one), buffers.

    frozen: bytes of the teacher, whose weights are as `model.dtype` says.
    """

    network: int
    frozen: int
    adapter: int = 0
    buffers: int = 0


def network_sizes(recipe: Recipe, adapter: ModelAdapter) -> NetworkSizes:
    """Counted on networks without data, from the configuration alone. Raises ValueError for impossible targets."""
    from dpdmd.models.lora import lora_configs

    network = empty_network(adapter)
    size, buffers = _count(network.parameters()), _count(network.buffers())
    frozen = frozen_bytes(network, recipe.model.dtype, adapter.block_lists)
    configs = lora_configs(recipe.lora, adapter, network)
    if not configs:
        return NetworkSizes(size, frozen, buffers=buffers)
    with torch.device("meta"):
        roles = Roles(network, lora={"student": next(iter(configs.values()))})
    return NetworkSizes(size, frozen, _count(roles.parameters("student").values()), buffers)


def frozen_bytes(network: nn.Module, dtype: str, block_lists: tuple[str, ...]) -> int:
    """What the network takes with its frozen weights in `model.dtype`, tables included."""
    numbers = _count(network.parameters()) + _count(network.buffers())
    if dtype in FROZEN_BYTES:
        return FROZEN_BYTES[dtype] * numbers
    weights = [layer.weight for _, layer in block_layers(network, block_lists)]
    kept = numbers - _count(weights)
    return FROZEN_BYTES["bf16"] * kept + sum(weight_bytes(weight.shape, dtype) for weight in weights)


def num_parameters(adapter: ModelAdapter) -> int:
    """Size of the denoising network, from its configuration alone."""
    return _count(empty_network(adapter).parameters())


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def forwards_per_update(plan: Plan, recipe: Recipe) -> tuple[float, float]:
    """Network calls on one sample for one student update with its M fake-score updates: (forward, backward).

    A guided call counts twice, one for a discriminator's features as if it went to the end. Students whose samples are
    each of one random step take (first trained step + N) / 2 calls on average, and in micro-batches that are smaller
    than the number of such steps more, since a call is of one sample at least. A term that is not in every update
    counts for its share of them. Of the denoising network alone: a perceptual term's autoencoder and backbone are not
    in them, nor are teacher samples that are kept.
    """
    n, anchored, every = plan.student_grid.num_steps, plan.objective.detach_after, plan.objective.every
    is_whole = recipe.student.kind == "ode" and not recipe.train.random_step
    rollout = n if is_whole else anchored + 1 + _simulated(n - anchored, recipe.train.batch_size)
    num_rollouts = 1 if recipe.train.reuse_samples else recipe.train.fake_updates
    forward = num_rollouts * rollout + recipe.train.fake_updates + rollout
    backward = recipe.train.fake_updates + (n - anchored if is_whole else 1) + anchored / every.get(ANCHOR, 1)
    if plan.feature_blocks:
        # Real samples, the student's, real ones moved a little; the student's term goes back to its samples.
        forward += recipe.train.fake_updates * (3 if recipe.objective.adversarial.r1_weight else 2)
        backward += 1
    return forward + sum(term.num_forwards / every.get(term.name, 1) for term in plan.objective.terms), backward


def _simulated(num_steps: int, batch_size: int) -> float:
    """Calls without graph before a random one of `num_steps` steps, per sample."""
    return sum(max(going_on / num_steps, 1 / batch_size) for going_on in range(1, num_steps))


def state_bytes(recipe: Recipe, sizes: NetworkSizes) -> dict[str, int]:
    """What stays in memory on every device, without activations, text encoders, autoencoder and a discriminator's head.

    Student and fake score are updated in turn, so that the gradients of one of them exist at a time.
    """
    trained = {role: sizes.adapter if role in recipe.lora.roles else sizes.network for role in TRAINED_ROLES}
    tables = {role: 0 if role in recipe.lora.roles else sizes.buffers for role in TRAINED_ROLES}
    return {
        "teacher": sizes.frozen,
        **{role.replace("_", " "): BYTES * (number + tables[role]) for role, number in trained.items()},
        "gradients": BYTES * max(trained.values()),
        "AdamW moments": 2 * BYTES * sum(trained.values()),
        "moving average": BYTES * trained["student"] if recipe.train.ema_decay else 0,
    }


def checkpoint_bytes(recipe: Recipe, sizes: NetworkSizes) -> int:
    """What a checkpoint takes on disk: trained weights, their moments and the moving average."""
    state = state_bytes(recipe, sizes)
    return sum(state[part] for part in ("student", "fake score", "AdamW moments", "moving average"))


def embedding_bytes(recipe: Recipe, adapter: ModelAdapter) -> int:
    """What the cache holds of one prompt, at most."""
    size = FROZEN_BYTES[recipe.train.precision]
    tensors = adapter.blank_condition(1).tensors.values()
    return sum(tensor.numel() * (size if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors)


def describe(plan: Plan, recipe: Recipe, adapter: ModelAdapter) -> str:
    """The plan in words, for `dpdmd train --dry-run`. Reads the model's JSON, none of its weights."""
    sizes = network_sizes(recipe, adapter)
    forward, backward = forwards_per_update(plan, recipe)
    memory = state_bytes(recipe, sizes)
    embedded = plan.embedded_guidance["teacher"]
    lines = {
        "model": f"{adapter.source}, {adapter.pipeline_class.__name__}",
        "network": f"{adapter.network_class.__name__}, {sizes.network:,} parameters, "
        f"predicts {adapter.prediction_space}",
        "latents": f"{' x '.join(map(str, plan.latent_shape))} per image",
        "teacher": f"{plan.teacher_grid.num_steps} steps, guidance {plan.guidance_scale:g}"
        + ("" if embedded is None else f", embedded guidance {embedded:g}"),
        "teacher grid": _times(plan.teacher_grid),
        "student": f"{plan.student_grid.num_steps} steps, {recipe.student.kind}, grid {recipe.student.grid!r}",
        "student grid": _times(plan.student_grid),
        "objective": recipe.objective.name,
    }
    if plan.anchor_stops:
        lines["anchor"] = _anchors(plan, recipe.objective.anchor.coarse_steps)
    if recipe.objective.name == "dmd_perceptual":
        pairs = recipe.objective.num_pairs
        noise = f"{pairs} pairs, whose teacher samples are made once" if pairs else "new noise in every update"
        lines["perceptual"] = (
            f"{recipe.objective.perceptual.backbone}, {noise}; decoding and features come on top of calls and memory"
        )
    if plan.feature_blocks:
        lines["discriminator"] = _discriminator(plan, recipe)
    train = recipe.train
    if sizes.adapter:
        names = " and ".join(role.replace("_", " ") for role in recipe.lora.roles)
        lines["LoRA"] = f"{names}: rank {recipe.lora.rank}, {sizes.adapter:,} parameters each on the teacher's network"
    lines |= {
        "one update": f"{forward:g} forward and {backward:g} backward network calls per sample, "
        f"{train.batch_size * train.accumulation} samples per process; {train.num_updates} updates"
        + ("" if train.max_seconds is None else f" or {train.max_seconds:g} s"),
        "memory": f"{sum(memory.values()) / 2**30:.2f} GiB per device and activations ("
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items() if size)
        + ")",
        "disk": f"{checkpoint_bytes(recipe, sizes) / 2**30:.2f} GiB per checkpoint, {recipe.checkpoint.keep + 1} of "
        "them while one is written",
    }
    width = max(map(len, lines))
    return "\n".join([f"{name:<{width}}  {text}" for name, text in lines.items()] + [f"note: {n}" for n in plan.notes])


def _anchors(plan: Plan, coarse_steps: int) -> str:
    """How the teacher gets to each anchor, in how many of its steps."""
    texts, taken = [], 0
    for start, stop in pairwise((0, *plan.anchor_stops)):
        taken += min(stop - start, coarse_steps)
        way = f"{stop} teacher steps" + (f" in {taken}" if taken < stop else "")
        texts.append(f"{way}, to t = {plan.teacher_grid.times[stop]:.4f}")
    return "; ".join(texts)


def _times(grid: Grid) -> str:
    return ", ".join(f"{t:.4g}" for t in grid.times)


def _discriminator(plan: Plan, recipe: Recipe) -> str:
    adversarial = recipe.objective.adversarial
    seen = f"blocks {', '.join(map(str, plan.feature_blocks))} of the {adversarial.features.replace('_', ' ')}"
    if plan.real_images:
        return f"{seen}; real are {len(plan.real_images)} images of {adversarial.real}"
    calls = adversarial.num_real * plan.teacher_grid.num_steps * (2 if plan.guidance_scale > 1 else 1)
    return f"{seen}; real are {adversarial.num_real} samples of the teacher, {calls:,} forward network calls once"
