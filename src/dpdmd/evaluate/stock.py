"""Sample with a stock diffusers pipeline, whatever its family, sampler and steps."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpdmd.distributed.processes import on_main_process
from dpdmd.evaluate.drawing import draw_folder
from dpdmd.evaluate.generate import require_different, start_processes
from dpdmd.evaluate.manifest import Manifest
from dpdmd.models.identity import lora_identity, model_identity
from dpdmd.models.parts import reading
from dpdmd.store.cache import batches
from dpdmd.store.messages import first_line, without_loading_bars
from dpdmd.store.names import local_or_hub_id

NETWORKS = ("transformer", "unet")


def generate_with_stock(
    model: str,
    prompts: list[str],
    *,
    out: str | Path,
    seeds: list[int],
    base: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """`generate.generate_folder` for any pipeline that diffusers loads, or a LoRA for `base`, called as it is.

    num_inference_steps, guidance_scale: as the pipeline's call takes them; default its own. Each image has its own
    generator, so that a pipeline that draws its noise at once starts from the noise of our samples with that seed.
    Raises ValueError for a model that cannot be loaded and for a pipeline that does not take these arguments.
    """
    require_different(prompts, seeds, batch_size)
    model, base = local_or_hub_id(model), base and local_or_hub_id(base)
    device = start_processes()
    pipeline = load_pipeline(model, base)
    options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    options = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(pipeline.__call__).parameters
    for name in ("prompt", "generator", "output_type", *options):
        if name not in known:
            raise ValueError(f"{model}: a {type(pipeline).__name__} does not take {name}")
    settings: dict[str, Any] = {
        "model": model,
        "identity": on_main_process(
            # Without a base it is a pipeline: anything else could not be loaded.
            lambda: model_identity(model) if base is None or is_pipeline(model) else lora_identity(model, base)
        ),
        "pipeline": type(pipeline).__name__,
    }
    for name in ("num_inference_steps", "guidance_scale"):
        settings[name] = options.get(name, known[name].default if name in known else None)
    pipeline.to(device)

    def draw(jobs: list[tuple[str, int]]) -> Iterator[Tensor]:
        for batch in batches(jobs, batch_size):
            images = pipeline(
                prompt=[prompt for prompt, _ in batch],
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                output_type="pt",
                **options,
            ).images
            yield from 2 * images.float().cpu() - 1

    return draw_folder(out, prompts, seeds, draw, settings=settings, what=f"sampling {model}", progress=progress)


def load_pipeline(model: str, base: str | None = None) -> Any:
    """The pipeline of a folder or hub id, in fp32; or `base` with the LoRA `model` merged into it.

    A LoRA is a .safetensors file, a folder with one and without model_index.json, or a hub id that is not a pipeline.
    Raises ValueError for what cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    source, is_lora = model, not is_pipeline(model)
    if is_lora:
        if Path(model).is_file() and Path(model).suffix != ".safetensors":
            raise ValueError(f"{model}: a LoRA must be a .safetensors file; pickles are not read")
        if base is None:
            raise ValueError(f"{model} is not a diffusers pipeline; a LoRA needs the pipeline that it was made for")
        source = base
    with reading(source, "pipeline"), without_loading_bars():
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    if is_lora:
        _merge_lora(pipeline, model, source)
    if not any(getattr(pipeline, name, None) is not None for name in NETWORKS):
        raise ValueError(f"{source}: a {type(pipeline).__name__} has no denoising network, so it cannot be audited")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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


def _merge_lora(pipeline: Any, model: str, base: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{base}: a {type(pipeline).__name__} does not take a LoRA")
    place = Path(model)
    where = {"weight_name": place.name} if place.is_file() else {}
    try:
        with reading(model, "LoRA"):
            pipeline.load_lora_weights(str(place.parent if where else model), use_safetensors=True, **where)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{model} is not a LoRA for {base}: {first_line(error)}") from None
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
