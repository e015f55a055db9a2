"""The cost of a run: bytes per device and on disk, and the whole plan in words."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dpdmd.method.grids import Grid
from dpdmd.method.roles import TRAINED_ROLES
from dpdmd.models.base import ModelAdapter, empty_network, network_blocks
from dpdmd.models.quantised import block_layers, weight_bytes
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.optimisers import OFFLOADED, STATES, optimiser_bytes
from dpdmd.recipe.plan import Plan

BYTES = 4  # fp32: trained weights, their gradients and moments
FROZEN_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class NetworkSizes:
    """Numbers in the denoising network: parameters, those of one adapter (0 when no role trains one), buffers.

    frozen: bytes of the teacher, with its weights in `model.dtype`. state, adapter_state: bytes of the optimiser's
    state for a whole network and for an adapter. largest, adapter_largest: numbers of their largest tensors.
    """

    network: int
    frozen: int
    adapter: int = 0
    buffers: int = 0
    state: int = 0
    adapter_state: int = 0
    largest: int = 0
    adapter_largest: int = 0


def network_sizes(plan: Plan, adapter: ModelAdapter) -> NetworkSizes:
    """The sizes, counted on networks without data. Raises ValueError for impossible LoRA targets."""
    from dpdmd.models.lora import lora_configs
    from dpdmd.models.role_networks import make_roles

    network, optimiser = empty_network(adapter), plan.optimiser.optimiser
    state = optimiser_bytes((tuple(p.shape) for p in network.parameters()), optimiser)
    size, buffers = _count(network.parameters()), _count(network.buffers())
    frozen = frozen_bytes(network, plan.teacher.dtype, adapter.block_lists)
    configs = lora_configs(plan.lora, adapter, network)
    whole = NetworkSizes(size, frozen, buffers=buffers, state=state, largest=_largest(network.parameters()))
    if not configs:
        return whole
    with torch.device("meta"):
        roles = make_roles(network, lora={"student": next(iter(configs.values()))})
    own = list(roles.parameters("student").values())
    adapter_state = optimiser_bytes((tuple(p.shape) for p in own), optimiser)
    return replace(whole, adapter=_count(own), adapter_state=adapter_state, adapter_largest=_largest(own))


def frozen_bytes(network: nn.Module, dtype: str, block_lists: tuple[str, ...]) -> int:
    """Bytes of the network with frozen weights in `model.dtype`, including buffers and scales of quantised weights."""
    numbers = _count(network.parameters()) + _count(network.buffers())
    if dtype in FROZEN_BYTES:
        return FROZEN_BYTES[dtype] * numbers
    weights = [layer.weight for _, layer in block_layers(network, block_lists)]
    kept = numbers - _count(weights)
    return FROZEN_BYTES["bf16"] * kept + sum(
        weight_bytes((rows, columns), dtype) for rows, columns in (weight.shape for weight in weights)
    )


def gathered_bytes(adapter: ModelAdapter) -> int:
    """The most bytes of a sharded network that are whole in every process at a time, in fp32.

    These are the parameters outside its blocks, and of its largest block the weights, those of the one that is fetched
    meanwhile, and their gradients before they are divided.
    """
    network = empty_network(adapter)
    blocks = [_count(block.parameters()) for block in network_blocks(network, adapter.block_lists)]
    return BYTES * (_count(network.parameters()) - sum(blocks) + 3 * max(blocks))


def num_blocks(adapter: ModelAdapter) -> int:
    """Blocks of the denoising network."""
    return len(network_blocks(empty_network(adapter), adapter.block_lists))


def num_parameters(adapter: ModelAdapter) -> int:
    """Parameters of the denoising network, counted without its weights."""
    return _count(empty_network(adapter).parameters())


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _largest(tensors: Iterable[Tensor]) -> int:
    return max((tensor.numel() for tensor in tensors), default=0)


def state_bytes(plan: Plan, sizes: NetworkSizes) -> dict[str, int]:
    """Bytes that stay on every device, by part, without activations, text encoders, autoencoder and discriminator head.

    Student and fake score are updated in turn, so only one of them has gradients at a time.
    """
    trained = {role: sizes.adapter if role in plan.lora.roles else sizes.network for role in TRAINED_ROLES}
    tables = {role: 0 if role in plan.lora.roles else sizes.buffers for role in TRAINED_ROLES}
    return {
        "teacher": sizes.frozen,
        **{role.replace("_", " "): BYTES * (number + tables[role]) for role, number in trained.items()},
        "gradients": BYTES * max(trained.values()),
        STATES[plan.optimiser.optimiser]: 0 if is_offloaded(plan) else moment_bytes(plan, sizes),
        "moving average": BYTES * trained["student"] if plan.optimiser.ema_decay else 0,
    }


def moment_bytes(plan: Plan, sizes: NetworkSizes) -> int:
    """Bytes of the optimisers' state, wherever it is."""
    return sum(sizes.adapter_state if role in plan.lora.roles else sizes.state for role in TRAINED_ROLES)


def is_offloaded(plan: Plan) -> bool:
    """Whether the optimisers' state is in the CPU's memory."""
    return plan.optimiser.optimiser == OFFLOADED


def moved_bytes(plan: Plan, sizes: NetworkSizes) -> int:
    """Bytes of an offloaded state that are on the device at a time, in a step: both moments of the largest weight."""
    if not is_offloaded(plan):
        return 0
    largest = (sizes.adapter_largest if role in plan.lora.roles else sizes.largest for role in TRAINED_ROLES)
    return 2 * BYTES * max(largest)


def checkpoint_bytes(plan: Plan, sizes: NetworkSizes) -> int:
    """Bytes of a checkpoint: trained weights, the optimiser's state, the moving average; a LoRA for stock tools."""
    state = state_bytes(plan, sizes)
    lora = BYTES * sizes.adapter if "student" in plan.lora.roles else 0
    kept = sum(state[part] for part in ("student", "fake score", "moving average"))
    return lora + kept + moment_bytes(plan, sizes)


def embedding_bytes(plan: Plan, adapter: ModelAdapter) -> int:
    """The largest number of bytes that the embedding cache holds for one prompt."""
    size = FROZEN_BYTES["bf16" if plan.compute.in_bf16 else "fp32"]
    tensors = adapter.blank_condition(1).tensors.values()
    return sum(tensor.numel() * (size if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors)


def describe(plan: Plan, adapter: ModelAdapter) -> str:
    """The plan in words, for `dpdmd train --dry-run`. Reads the model's configuration, not its weights."""
    sizes, data = network_sizes(plan, adapter), plan.data
    forward, backward = forwards_per_update(plan)
    memory = state_bytes(plan, sizes)
    embedded, samples = plan.embedded_guidance["teacher"], data.batch_size * data.accumulation
    lines = {
        "model": f"{adapter.source}, {adapter.pipeline_class.__name__}"
        + "".join(f", LoRA {lora.path} ({lora.weight:g})" for lora in adapter.loras),
        "network": f"{adapter.network_class.__name__}, {sizes.network:,} parameters, "
        f"predicts {adapter.prediction_space}",
        "latents": " or ".join(" x ".join(map(str, size.latent_shape)) for size in plan.sizes) + " per image",
        "teacher": f"{plan.teacher.grid.num_steps} steps, guidance {plan.teacher.guidance.scale:g}"
        + ("" if embedded is None else f", embedded guidance {embedded:g}"),
        "teacher grid": _of_sizes(plan, lambda at: _times(at.teacher.grid)),
        "student": f"{plan.student.grid.num_steps} steps, {plan.student.kind}, grid {plan.settings['student.grid']!r}",
        "student grid": _of_sizes(plan, lambda at: _times(at.student.grid)),
        "objective": plan.objective_name,
        **_of_terms(plan),
    }
    if sizes.adapter:
        names = " and ".join(role.replace("_", " ") for role in plan.lora.roles)
        lines["LoRA"] = f"{names}: rank {plan.lora.rank}, {sizes.adapter:,} parameters each on the teacher's network"
    seconds = "" if plan.budget.max_seconds is None else f" or {plan.budget.max_seconds:g} s"
    lines |= {
        "one update": f"{forward:g} forward and {backward:g} backward network calls per sample, {samples} samples per "
        f"process; {plan.budget.num_updates} updates{seconds}",
        "memory": f"{sum(memory.values()) / 2**30:.2f} GiB per device and activations ("
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items() if size)
        + ")"
        + (f"; AdamW moments, {moment_bytes(plan, sizes) / 2**30:.2f} GiB, in the CPU's" if is_offloaded(plan) else ""),
        "disk": f"{checkpoint_bytes(plan, sizes) / 2**30:.2f} GiB per checkpoint, {plan.checkpoint.keep + 1} of "
        "them while one is written",
    }
    width = max(map(len, lines))
    return "\n".join([f"{name:<{width}}  {text}" for name, text in lines.items()] + [f"note: {n}" for n in plan.notes])


def _of_sizes(plan: Plan, text: Callable[[Plan], str]) -> str:
    """A text about the plan of each size, once where all are the same."""
    texts = {at.image_size: text(at) for at in plan.at_each_size}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{size[0]} x {size[1]}: {text}" for size, text in texts.items() if size is not None)


def _of_terms(plan: Plan) -> dict[str, str]:
    """{name: description} of the terms that need more than their name."""
    lines = {}
    if plan.anchor_steps is not None:
        coarse = plan.settings["objective.anchor.coarse_steps"]
        lines["anchor"] = _of_sizes(plan, lambda at: _anchor(at.teacher.grid, at.anchor_steps or 0, coarse))
    if plan.objective_name == "dmd_perceptual":
        pairs = plan.objective.num_pairs
        noise = f"{pairs} pairs, whose teacher samples are made once" if pairs else "fresh noise in every update"
        backbone = plan.settings["objective.perceptual.backbone"]
        lines["perceptual"] = f"{backbone}, {noise}; decoding and features add to these calls and this memory"
    if plan.feature_blocks:
        lines["discriminator"] = _discriminator(plan)
    return lines


def _anchor(grid: Grid, num_steps: int, coarse_steps: int) -> str:
    """The teacher steps to the anchor, in how many they are taken, and the time where they end."""
    taken = min(num_steps, coarse_steps)
    way = f"{num_steps} teacher steps" + (f" in {taken}" if taken < num_steps else "")
    return f"{way}, to t = {grid.times[num_steps]:.4f}"


def _times(grid: Grid) -> str:
    return ", ".join(f"{t:.4g}" for t in grid.times)


def _discriminator(plan: Plan) -> str:
    settings = plan.objective.discriminator
    assert settings is not None, "only a discriminator has feature blocks"
    seen = f"blocks {', '.join(map(str, plan.feature_blocks))} of the {settings.features.replace('_', ' ')}"
    if plan.real_images:
        return f"{seen}; real are {len(plan.real_images)} images of {settings.real}"
    calls = settings.num_real * plan.teacher.grid.num_steps * plan.teacher.guidance.num_forwards
    return f"{seen}; real are {settings.num_real} samples of the teacher, {calls:,} forward network calls once"
