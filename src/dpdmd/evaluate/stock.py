"""Sample with a stock diffusers pipeline, whatever its family, sampler and steps."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpdmd.distributed.processes import on_main_process
from dpdmd.evaluate.drawing import DEFAULTS, draw_folder
from dpdmd.evaluate.foreign_lora import merge_foreign_lora
from dpdmd.evaluate.generate import Drawing, require_different, start_processes
from dpdmd.evaluate.manifest import Manifest
from dpdmd.models.identity import lora_identity, model_identity
from dpdmd.models.load import sampling_dtype
from dpdmd.models.parts import load_components, local_folder, read_index, stored_dtype
from dpdmd.models.pipeline_files import part_class, parts_of
from dpdmd.models.student_file import BaseLora
from dpdmd.store.cache import batches
from dpdmd.store.errors import reading
from dpdmd.store.messages import without_loading_bars
from dpdmd.store.names import local_or_hub_id

NETWORKS = ("transformer", "unet")
SCHEDULER = "scheduler"  # folder of a pipeline's scheduler, and of the one beside a LoRA


@dataclass(frozen=True)
class Call:
    """What a stock pipeline is called with; None leaves it at the pipeline's default.

    num_inference_steps, guidance_scale, negative_prompt, timesteps, sigmas: as the pipeline takes them.
    scheduler: class name in diffusers, which keeps the settings of the pipeline's own, or a folder or hub id with a
        scheduler_config.json.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Those that are given to the call."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != SCHEDULER}
        return given | {name: list(given[name]) for name in ("timesteps", "sigmas") if name in given}

    @property
    def needs_stock(self) -> bool:
        """Whether only a stock pipeline can do it."""
        return any(value is not None for value in (self.negative_prompt, self.scheduler, self.timesteps, self.sigmas))


def generate_with_stock(
    model: str,
    prompts: list[str],
    *,
    out: str | Path,
    seeds: list[int],
    base: str | None = None,
    loras: Sequence[BaseLora] = (),
    call: Call = Call(),  # frozen
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """`generate.generate_folder` for any pipeline that diffusers loads, or a LoRA for `base`, called as `call` says.

    The manifest has all arguments and the scheduler, under "defaults" what was left out. Raises ValueError like
    `open_pipeline`.
    """
    require_different(prompts, seeds, batch_size)
    drawing = open_pipeline(model, base, loras=loras, call=call, batch_size=batch_size)
    what = f"sampling {local_or_hub_id(model)}"
    return draw_folder(out, prompts, seeds, drawing.draw, settings=drawing.settings, what=what, progress=progress)


def open_pipeline(
    model: str,
    base: str | None = None,
    *,
    loras: Sequence[BaseLora] = (),
    call: Call = Call(),
    batch_size: int = 32,
) -> Drawing:
    """`generate.open_model` for any pipeline that diffusers loads, or a LoRA for `base`, called as `call` says.

    loras: to merge into the pipeline, or into `base`, first. Each image has its own generator, so that a pipeline that
    draws its noise at once starts from the noise of our samples with that seed.
    Raises ValueError for a model that cannot be loaded and for a pipeline that does not take these arguments.
    """
    model, base = local_or_hub_id(model), base and local_or_hub_id(base)
    device = start_processes()
    pipeline, fit = load_pipeline(model, base, scheduler=call.scheduler, loras=loras)
    options = call.arguments()
    known = inspect.signature(pipeline.__call__).parameters
    for name in ("prompt", "generator", "output_type", *options):
        if name not in known:
            raise ValueError(f"{model}: a {type(pipeline).__name__} does not take {name}")
    settings: dict[str, Any] = {
        "model": model,
        "identity": on_main_process(
            # Without a base it is a pipeline: anything else could not be loaded.
            lambda: (
                model_identity(model, loras=loras)
                if base is None or is_pipeline(model)
                else lora_identity(model, base, loras)
            )
        ),
        "pipeline": type(pipeline).__name__,
        **_settings(call, known),
        "scheduler": {"class": type(pipeline.scheduler).__name__} | _public(pipeline.scheduler.config),
    }
    if loras:
        settings["loras"] = [lora.model_dump() for lora in loras]
    if fit is not None:
        settings |= {"base": base, "lora_layers": {"applied": fit[0], "in_file": fit[1]}}
    pipeline.to(device)

    def draw(jobs: list[tuple[str, int]]) -> Iterator[Tensor]:
        for batch in batches(jobs, batch_size):
            images = pipeline(
                prompt=[prompt for prompt, _ in batch],
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                output_type="pt",
                **_for_batch(options, len(batch)),
            ).images
            yield from 2 * images.float().cpu() - 1

    return Drawing(draw, settings)


def _settings(call: Call, known: Any) -> dict[str, Any]:
    """Every argument of the call with its value, given or the pipeline's default, and which are defaults."""
    given, names = call.arguments(), ("num_inference_steps", "guidance_scale", "negative_prompt", "timesteps", "sigmas")
    defaults = [name for name in names[:3] if name not in given and name in known]
    if {"timesteps", "sigmas"} & given.keys() and "num_inference_steps" in defaults:
        defaults.remove("num_inference_steps")  # it does not count then
    if call.scheduler is None:
        defaults.append(SCHEDULER)
    values = {name: given.get(name, known[name].default if name in known else None) for name in names}
    if "timesteps" in given or "sigmas" in given:
        values["num_inference_steps"] = len(given.get("timesteps") or given["sigmas"])
    return values | {DEFAULTS: defaults}


def _for_batch(options: dict[str, Any], number: int) -> dict[str, Any]:
    """A negative prompt is given once per image, as the prompts are."""
    if "negative_prompt" not in options:
        return options
    return options | {"negative_prompt": [options["negative_prompt"]] * number}


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's settings as JSON has them."""
    return {name: value for name, value in config.items() if not name.startswith("_") and not isinstance(value, Tensor)}


def load_pipeline(
    model: str, base: str | None = None, *, scheduler: str | None = None, loras: Sequence[BaseLora] = ()
) -> tuple[Any, tuple[int, int] | None]:
    """The pipeline of a folder or hub id in its own dtype, or `base` with the LoRA `model` merged into it.

    A LoRA is a .safetensors file, a folder with one and without model_index.json, or a hub id that is not a pipeline.
    scheduler: see `Call`; default: one beside a LoRA, else the pipeline's. loras: to merge into the pipeline first.
    Returns the pipeline, and for a LoRA how many of its layers were applied and how many it has.
    Raises ValueError for what cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    source, fit = model, None
    if is_lora := not is_pipeline(model):
        if Path(model).is_file() and Path(model).suffix != ".safetensors":
            raise ValueError(f"{model}: a LoRA must be a .safetensors file; pickles are not read")
        if base is None:
            raise ValueError(f"{model} is not a diffusers pipeline; a LoRA needs the pipeline that it was made for")
        source = base
    dtype = _dtype(source)
    components = load_components(source, dtype)
    with reading(source, "pipeline"), without_loading_bars():
        folder = local_folder(source)
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, **components)
    for lora in loras:
        merge_foreign_lora(pipeline, local_or_hub_id(lora.path), source, lora.weight)
    if is_lora:
        fit = merge_foreign_lora(pipeline, model, source)
        beside = (Path(model).parent if Path(model).is_file() else Path(model)) / SCHEDULER
        if scheduler is None and beside.is_dir():
            scheduler = str(beside)
    if scheduler is not None:
        pipeline.scheduler = _scheduler(scheduler, pipeline.scheduler)
    if not any(getattr(pipeline, name, None) is not None for name in NETWORKS):
        raise ValueError(f"{source}: a {type(pipeline).__name__} has no denoising network, so it cannot be audited")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, fit


def _scheduler(name: str, own: Any) -> Any:
    """The scheduler that a class name, a folder or a hub id stands for; `own` is the pipeline's."""
    import diffusers

    any_class: Any = diffusers.FlowMatchEulerDiscreteScheduler  # all read the JSON in the same way
    if name.isidentifier() and not Path(name).is_dir():
        known: Any = getattr(diffusers, name, None)
        if not (isinstance(known, type) and issubclass(known, diffusers.SchedulerMixin)):
            raise ValueError(f"diffusers has no scheduler {name!r}")
        scheduler: Any = known  # a class that also has the mixin of configurations
        with reading(name, "scheduler"):
            return scheduler.from_config(own.config)
    place = local_or_hub_id(name)
    with reading(name, "scheduler configuration"):
        found = any_class.load_config(place)
    scheduler_class: Any = part_class(name, SCHEDULER, "diffusers", str(found.get("_class_name")))
    with reading(name, "scheduler"):
        return scheduler_class.from_config(found)


def _dtype(source: str) -> torch.dtype:
    """The dtype in which a pipeline's network draws."""
    name = next((name for name in NETWORKS if name in parts_of(read_index(source))), None)
    return torch.float32 if name is None else sampling_dtype(stored_dtype(source, name))


def is_pipeline(model: str) -> bool:
    """Whether a folder, file or hub id is a diffusers pipeline; if not, it may be a LoRA."""
    from diffusers import DiffusionPipeline

    place = Path(model)
    if place.exists():
        return (place / "model_index.json").is_file()
    try:
        DiffusionPipeline.load_config(model)
    except OSError:
        return False
    return True
