"""`dpdmd new`, also from Python: write the recipe of a model, which fits a device."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dpdmd.models.load import planning_adapter
from dpdmd.planning.fit import GIB, device_memory, has_gpu
from dpdmd.planning.new import new_recipe
from dpdmd.recipe.settings import Trained
from dpdmd.recipe.teacher import parse_lora
from dpdmd.store.files import require_writable, write_text
from dpdmd.store.names import did_you_mean, expanded

logger = logging.getLogger(__name__)
DEFAULT_MEMORY = 24.0  # GiB, on a machine without a GPU


def default_memory() -> float:
    """GiB of this machine's GPU, else DEFAULT_MEMORY."""
    return device_memory() / GIB if has_gpu() else DEFAULT_MEMORY


def write_recipe(
    model: str | Path,
    out: str | Path,
    *,
    memory: float | None = None,
    num_steps: int = 4,
    base: str | None = None,
    trained: Trained | None = None,
    loras: Sequence[str] = (),
    num_devices: int = 1,
) -> Path:
    """Write a complete, commented recipe that distils `model` to `num_steps` steps; returns the file.

    It reads the model's configurations and no weights, and works offline for the models of the shipped recipes.

    model: a pipeline folder, a hub id, a built-in name, or a .safetensors file, which becomes a pipeline folder next to
    the recipe first, once. out: a TOML file; it must not exist. memory: of the device in GiB; default: this machine's
    GPU, else 24. base: of a .safetensors file: folder or hub id of the pipeline it was made from. trained: "adapters"
    or "all" weights; default: all if they fit. loras: "PATH" or "PATH:WEIGHT" of each LoRA that is merged into the
    model to be the teacher. num_devices: of that memory; several share every network (train.shard).
    Raises ValueError for what cannot be used.
    """
    model, out = str(model), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; name another file")
    require_writable(out)
    if model.endswith(".safetensors"):
        model = str(_converted(model, base, out))
    elif base is not None:
        raise ValueError(f"--base is for a single .safetensors file, got {model}")
    folder = Path(expanded(model))
    model = str(folder.absolute()) if folder.is_dir() else model
    gib = default_memory() if memory is None else memory
    written = new_recipe(
        model,
        planning_adapter(model, [parse_lora(text) for text in loras]),
        memory=round(gib * GIB),
        name=out.stem,
        num_steps=num_steps,
        trained=trained,
        num_devices=num_devices,
    )
    write_text(out, written.text)
    for note in written.plan.notes:
        logger.info("note: %s", note)
    if not written.fits:
        logger.info("note: it does not fit %g GiB: it needs %.1f GiB", gib, written.need.total / GIB)
    return out


def _converted(file: str, base: str | None, recipe: Path) -> Path:
    """The pipeline folder that a single file becomes, next to the recipe."""
    path = Path(expanded(file))
    if not path.is_file():
        raise ValueError(f"there is no {file}{did_you_mean(path)}")
    if base is None:
        raise ValueError(
            f"{file} is a single file without configurations and tokenizers: name the pipeline that it was made from, "
            "as in --base stabilityai/stable-diffusion-xl-base-1.0"
        )
    from dpdmd.models.single_file import convert_single_file

    folder = convert_single_file(path, base, recipe.parent / path.stem)
    logger.info("model: %s", folder)
    return folder
