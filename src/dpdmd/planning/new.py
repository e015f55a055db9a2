"""A complete recipe for a model, which fits a device: what `dpdmd new` writes, and what the shipped recipes are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dpdmd.models.base import ModelAdapter
from dpdmd.models.load import BUILT_IN
from dpdmd.models.student_file import BaseLora
from dpdmd.planning.cost import network_sizes, num_blocks, state_bytes
from dpdmd.planning.fit import GIB, Need, Settings, counter, reserve, savings
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.settings import NOISE_ANCHOR_STEPS, OF_FAMILY, Trained, settings_for
from dpdmd.recipe.toml import override, recipe_from
from dpdmd.world.find import WORLDS, world_of_teacher

WRITTEN = "the recipe of `dpdmd new`"  # its name in messages
COMMENTS = {
    "model.loras": "merged into its network: both together are the teacher",
    "model.dtype": "of frozen weights; what is trained stays in fp32",
    "model.guidance_scale": "of the teacher: the value that you draw with, since the student draws as if guided so",
    "model.embedded_guidance": "fed to teacher, student and fake score; true guidance stays off",
    "model.num_inference_steps": "of the teacher",
    "student.num_steps": "network calls per image",
    "student.shift": "of the student's steps: with the model's own, step 1 would end before anything is decided",
    "student.kind": "which steps add fresh noise: all (renoise), or the one before the last (renoise_last)",
    "objective.anchor.weight": "lambda; more keeps more diversity",
    "objective.anchor.fraction": "of the samples of each update; the others cost no teacher steps",
    "objective.anchor.guidance_scale": "of the steps to the anchor; below the teacher's it keeps more diversity",
    "objective.anchor.coarse_steps": "teacher steps to the anchor; the target x0 takes one more",
    "objective.anchor.target": "for networks that predict noise",
    "data.prompts": "captions to begin with; name a file with prompts like those that the student will be given",
    "train.batch_size": "samples per micro-batch",
    "train.accumulation": "micro-batches per update and device; on more devices take fewer",
    "train.fake_updates": "of the fake score for each of the student; DMD without an anchor needs more",
    "train.ida_decay": "draws the fake score to the student after each update, so that it lags less",
    "train.reuse_samples": "the fake score learns the samples that the student's update drew",
    "train.shard": "spreads every network over the devices",
    "train.schedule": "the learning rate falls to zero",
    "train.optimiser": "moments take less of the device's memory: in 8 bits, or offloaded to the CPU's",
    "train.random_step": "trains one random step of each sample: fewer calls, less memory",
    "train.gradient_checkpointing": "recomputes the first blocks, as many as it takes to fit",
    "lora.roles": "adapters on one frozen backbone; without them all weights of two copies are trained",
    "validation.every": "pictures of teacher and student, and scores",
}


@dataclass(frozen=True)
class NewRecipe:
    """A recipe as TOML with comments, its plan, what it needs on a device, and whether it fits the one asked for."""

    text: str
    plan: Plan
    need: Need
    fits: bool


def new_recipe(
    model: str,
    adapter: ModelAdapter,
    *,
    memory: int,
    name: str,
    num_steps: int = 4,
    trained: Trained | None = None,
    num_devices: int = 1,
) -> NewRecipe:
    """The recipe that distils `model` to `num_steps` steps by DP-DMD within `memory` bytes of a device.

    name: of the recipe, from which its run folder is named. num_devices: of that memory, over which `train.shard`
    spreads the networks if there are several. trained: all weights or adapters; default: all if they fit.
    Raises ValueError for a number of devices that cannot share the samples of an update.
    Numbers come from `recipe.settings`, guidance and grids from the model's family; what does not fit is changed as
    `dpdmd plan` would. If nothing fits, the recipe is the one that needs least, and its head says so.
    """
    kinds: tuple[Trained, ...] = ("all", "adapters") if trained is None else (trained,)
    for kind in kinds:
        options = {"num_steps": num_steps, "trained": kind, "num_devices": num_devices}
        data = _settings(model, adapter, name=name, **options)

        def plan_with(further: Settings, data=data, kind=kind) -> Plan:
            if kind == "all" and any(text.startswith("lora.") for text in further):
                raise ValueError("all weights are to be trained")
            if trained is None and any(text.startswith("train.optimiser") for text in further):
                raise ValueError("another optimiser is for who wants all weights to be trained")
            return resolve(recipe_from(data, further, where=WRITTEN), adapter)

        state = state_bytes(
            plan_with(("model.dtype=bf16", "train.precision=bf16")), network_sizes(plan_with(()), adapter)
        )
        if kind != kinds[-1] and sum(state.values()) > num_devices * memory:
            continue  # without counting activations, which takes a while
        count = counter(adapter, num_devices)
        found = savings(plan_with, count, memory, num_blocks(adapter))
        need = found[-1][1] if found else count(plan_with(()))
        if need.total <= memory - reserve(memory):
            break
    further = tuple(setting for taken, _ in found for setting in taken)
    for text in further:
        override(data, text)
    fits = need.total <= memory - reserve(memory)
    head = _head(model, adapter.loras, num_steps, kind, need, memory, fits, num_devices)
    return NewRecipe(head + _toml(data), plan_with(further), need, fits)


def _settings(
    model: str, adapter: ModelAdapter, *, name: str, num_steps: int, trained: Trained, num_devices: int
) -> dict[str, Any]:
    """The recipe as nested tables, before anything is changed to fit a device."""
    latents = adapter.latent_shape()
    of_family = OF_FAMILY.get(adapter.pipeline_class.__name__, {})
    height, width = (side * adapter.vae_factor for side in latents[1:])
    kind = settings_for(latents, trained)
    samples = kind.batch_size * kind.accumulation
    if samples % num_devices:
        raise ValueError(
            f"{num_devices} devices cannot share the {samples} samples of an update evenly: name a divisor"
        )
    batch_size = min(kind.batch_size, samples // num_devices)
    is_flow = adapter.prediction_space == "velocity"
    values: dict[str, Any] = {
        "model.teacher": model,
        "model.loras": [{"path": lora.path, "weight": lora.weight} for lora in adapter.loras] or None,
        "model.dtype": "bf16" if trained == "adapters" and kind.precision == "bf16" else "fp32",
        "model.height": of_family.get("model.height", height),
        "model.width": of_family.get("model.width", width),
        "model.guidance_scale": adapter.guidance_scale,
        "model.num_inference_steps": adapter.num_inference_steps,
        "model.embedded_guidance": adapter.embedded_guidance,
        "student.num_steps": num_steps,
        "student.kind": of_family.get("student.kind", kind.student_kind),
        "student.shift": of_family.get("student.shift"),
        "objective.name": "dp_dmd",
        "objective.tau_shift": kind.tau_shift if kind.tau_shift != 1 else None,
        "objective.anchor.weight": kind.anchor_weight,
        "objective.anchor.fraction": kind.anchor_fraction if kind.anchor_fraction < 1 else None,
        "objective.anchor.guidance_scale": _anchor_guidance(
            adapter.guidance_scale, kind.anchor_guidance if is_flow else 1
        ),
        "objective.anchor.coarse_steps": None if is_flow else NOISE_ANCHOR_STEPS,
        "objective.anchor.target": None if is_flow else "x0",
        "data.prompts": world.name if (world := world_of_teacher(model)) else "generic",
        "train.num_updates": kind.num_updates,
        "train.batch_size": batch_size,
        "train.accumulation": samples // num_devices // batch_size,
        "train.fake_updates": kind.fake_updates,
        "train.ida_decay": kind.ida_decay if kind.ida_decay < 1 else None,
        "train.reuse_samples": kind.reuse_samples,
        "train.random_step": kind.random_step or None,
        "train.learning_rate": kind.learning_rate,
        "train.schedule": kind.schedule,
        "train.ema_decay": kind.ema_decay or None,
        "train.precision": kind.precision,
        "train.shard": True if num_devices > 1 else None,
        "lora.roles": ["student", "fake_score"] if trained == "adapters" else None,
        "lora.rank": 64 if trained == "adapters" else None,
        "validation.every": kind.validation_every,
        "checkpoint.every": kind.checkpoint_every,
        "output.folder": f"runs/{name}",
    }
    data: dict[str, Any] = {}
    for key, value in values.items():
        *tables, last = key.split(".")
        table = data
        for part in tables:
            table = table.setdefault(part, {})
        if value is not None:
            table[last] = value
    return {section: table for section, table in data.items() if table}


def _anchor_guidance(scale: float, share: float) -> float | None:
    """The guidance scale of the anchor, at least 1; None where it is the teacher's."""
    return None if share == 1 or scale == 1 else round(max(1.0, share * scale), 4)


def _head(
    model: str,
    loras: Sequence[BaseLora],
    num_steps: int,
    trained: Trained,
    need: Need,
    memory: int,
    fits: bool,
    num_devices: int,
) -> str:
    """The comment at the head of the file: what it is, and what it needs."""
    shown = model if model in BUILT_IN or not Path(model).is_dir() else Path(model).name
    device = f"{memory / GIB:g} GiB"
    how = "all weights" if trained == "all" else "LoRA adapters"
    told = "fits" if fits else "DOES NOT FIT"
    devices = "one device" if num_devices == 1 else f"{num_devices} devices"
    each = "" if num_devices == 1 else " on each"
    command = f"dpdmd new {shown} --memory {memory / GIB:g} --{'full' if trained == 'all' else 'adapters'}"
    command += "".join(f" --lora {Path(lora.path).name}:{lora.weight:g}" for lora in loras)
    command += f" --steps {num_steps}" if num_steps != 4 else ""
    command += f" --gpus {num_devices}" if num_devices > 1 else ""
    start = f"# Start it by `torchrun --nproc-per-node={num_devices}`, or on several machines.\n"
    return (
        f"# {shown} to {num_steps} steps by DP-DMD, training {how}, for {devices} of {device}.\n"
        f"# Memory: {need.total / GIB:.1f} GiB{each}, which {told}: {reserve(memory) / GIB:.1f} GiB of {device} are "
        "left free.\n"
        "# This is counted by `dpdmd plan`; no run at full size has confirmed it.\n"
        f"# Written by `{command}`.\n" + (start if num_devices > 1 else "") + "# Keys that are left out keep their "
        "defaults; `dpdmd config` lists them all.\n"
    )


def _toml(data: dict[str, Any], table: str = "") -> str:
    """Tables in their order, each key with its comment."""
    lines = []
    values = {key: value for key, value in data.items() if not isinstance(value, dict)}
    if values:
        lines.append(f"[{table}]")
        for key, value in values.items():
            setting = tomli_w.dumps({key: value}).strip() if not isinstance(value, list) else f"{key} = {_list(value)}"
            comment = None if key == "prompts" and value in WORLDS else COMMENTS.get(f"{table}.{key}")
            lines.append(setting if comment is None else f"{setting}  # {comment}")
        lines.append("")
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, value in data.items():
        if isinstance(value, dict):
            text += _toml(value, f"{table}.{key}" if table else key)
    return text if table else text.rstrip("\n") + "\n"


def _list(values: list[Any]) -> str:
    return "[" + ", ".join(_table(value) if isinstance(value, dict) else f'"{value}"' for value in values) + "]"


def _table(values: dict[str, Any]) -> str:
    """A table in one line."""
    return "{" + ", ".join(tomli_w.dumps({key: value}).strip() for key, value in values.items()) + "}"
