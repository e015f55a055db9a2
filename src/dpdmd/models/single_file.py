"""One .safetensors file, as most fine-tunes are shared, turned into a pipeline folder by diffusers' own loader.

The base says what the file does not: configurations, tokenizers, the scheduler, and whole parts that the file lacks.
Every number of the file is then looked for in the result: a loader that skips a tensor leaves random weights behind.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.models.load import FAMILIES, planning_adapter
from dpdmd.models.parts import local_folder
from dpdmd.models.pipeline_files import parts_of, read_index
from dpdmd.store.errors import reading
from dpdmd.store.files import atomic_folder, read_json, write_json
from dpdmd.store.messages import first_line, without_loading_bars
from dpdmd.store.names import local_or_hub_id
from dpdmd.store.tensors import read_tensors

# What the names of a checkpoint begin with, by part of the pipeline; other names are the denoising network's.
VAE = ("first_stage_model.", "vae.")
TEXTS = ("conditioner.embedders.", "cond_stage_model.", "text_encoders.")
NETWORK = ("model.diffusion_model.",)
# Tensors that are no weights of the pipeline: schedules of the training, counters, CLIP's temperature; averages.
NO_WEIGHTS = ("position_ids", "logit_scale", "alphas_cumprod", "alphas_cumprod_prev", "betas", "sigmas", "log_sigmas")
AVERAGES = ("model_ema.",)
# Empty tensors that say how a fine-tune of SDXL predicts, and the setting of the scheduler that it means.
SCHEDULE_MARKS = {"v_pred": {"prediction_type": "v_prediction"}, "ztsnr": {"rescale_betas_zero_snr": True}}
Content = tuple[int, int, int]


def convert_single_file(file: str | Path, base: str, out: str | Path) -> Path:
    """Write the checkpoint `file` as the pipeline folder `out`, which must not exist; returns it.

    base: folder or hub id of a pipeline of the same family, whose network has the same shape.
    Raises ValueError when the file is no safetensors file, when it does not fit the base, and when not every number of
    its weights is in the result.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already: use it as the model, or remove it")
    checkpoint = read_tensors(file)
    adapter = planning_adapter(base)
    folder = _base_folder(local_or_hub_id(base), whole=not all(_names(checkpoint, part) for part in (VAE, TEXTS)))
    parts = list(parts_of(read_index(folder)))
    groups = {"vae": VAE, **{name: TEXTS for name in parts if name.startswith("text_encoder")}}
    absent = [name for name, prefixes in groups.items() if name in parts and not _names(checkpoint, prefixes)]
    pipeline = _load(adapter.pipeline_class, file, folder, absent)
    converted = {name: getattr(pipeline, name) for name in [adapter.network_name, *groups] if name not in absent}
    _require_all(checkpoint, converted, adapter.network_name, file)
    with atomic_folder(out) as temporary:
        for name in parts:
            if name in converted:
                converted[name].save_pretrained(temporary / name)
            else:
                shutil.copytree(folder / name, temporary / name, copy_function=shutil.copyfile)
        shutil.copyfile(folder / "model_index.json", temporary / "model_index.json")
        _mark_schedule(checkpoint, temporary / "scheduler" / "scheduler_config.json")
    return out


def _base_folder(base: str, *, whole: bool) -> Path:
    """The folder of the base; of a hub id only configurations and tokenizers are downloaded unless `whole`."""
    if whole or Path(base).is_dir():
        return local_folder(base)
    from huggingface_hub import snapshot_download

    with reading(base, "configurations"):
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.txt", "*.model"]))


def _load(pipeline_class: Any, file: Path, folder: Path, absent: list[str]) -> Any:
    """The stock pipeline of the file, without the parts that it lacks."""
    dropped: dict[str, Any] = dict.fromkeys(absent)
    try:
        with without_loading_bars():
            return pipeline_class.from_single_file(str(file), config=str(folder), local_files_only=True, **dropped)
    except (ValueError, RuntimeError, KeyError, OSError, AttributeError, NotImplementedError) as error:
        families = ", ".join(sorted(FAMILIES))
        raise ValueError(
            f"{file} cannot be read as a {pipeline_class.__name__} with the configuration of {folder}: "
            f"{first_line(error).rstrip('.')}; --base must be of the file's own family ({families}) and size"
        ) from None


def _names(checkpoint: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return [name for name in checkpoint if name.startswith(prefixes)]


def _require_all(checkpoint: dict[str, Tensor], parts: dict[str, nn.Module], network: str, file: Path) -> None:
    """Raises ValueError unless the parts hold exactly the numbers of the file's weights, in whatever order."""
    weights = {
        name: tensor
        for name, tensor in checkpoint.items()
        if name.rpartition(".")[2] not in NO_WEIGHTS and name not in SCHEDULE_MARKS and not name.startswith(AVERAGES)
    }
    texts = [name for name in parts if name.startswith("text_encoder")]
    own = _names(weights, NETWORK) or [name for name in weights if not name.startswith((*VAE, *TEXTS))]
    of_vae = ["vae"] if "vae" in parts else []
    groups = [([network], own), (of_vae, _names(weights, VAE)), (texts, _names(weights, TEXTS))]
    left = sorted(weights.keys() - {name for _, names in groups for name in names})
    if left:
        raise ValueError(f"{file}: {len(left)} tensors belong to no part of the pipeline, the first is {left[0]}")
    for names, keys in groups:
        given, made = [weights[key] for key in keys], [t for name in names for t in _weights_of(parts[name])]
        if any(tensor.is_meta for tensor in made) or content(made) != content(given):
            have, need = (sum(tensor.numel() for tensor in tensors) for tensors in (given, made))
            raise ValueError(
                f"{file}: not every number of its {' and '.join(names)} was taken over: it has {have:,}, and the "
                f"configuration asks for {need:,}; name a --base of the same family and size"
            )
        for name in names:
            _restore_dtype(parts[name], given)


def _restore_dtype(part: nn.Module, given: list[Tensor]) -> None:
    """Store a part as the file does, where it does so in one dtype: the loader makes fp32 of it."""
    dtypes = {tensor.dtype for tensor in given}
    if len(dtypes) == 1:
        dtype = dtypes.pop()
        nn.Module.to(part, dtype if dtype.itemsize > 1 else torch.bfloat16)  # bf16 holds every value of 8 bits


def _weights_of(part: nn.Module) -> list[Tensor]:
    """The parameters and stored buffers of a part, without what the loader adds: CLIP's identity as text_projection."""
    return [
        tensor
        for name, tensor in part.state_dict().items()
        if not name.endswith("position_ids") and not (name == "text_projection.weight" and _is_identity(tensor))
    ]


def _is_identity(matrix: Tensor) -> bool:
    return not matrix.is_meta and torch.equal(matrix, torch.eye(*matrix.shape, dtype=matrix.dtype))


def content(tensors: list[Tensor]) -> Content:
    """How many numbers, and the sums of their bits in fp32 and of the squares of these: equal in any arrangement."""
    number = total = squares = 0
    for tensor in tensors:
        bits = tensor.detach().float().contiguous().view(torch.int32).long()
        number += tensor.numel()
        total += int(bits.sum())
        squares += int((bits * bits).sum())  # wraps around, in any order to the same
    return number, total % 2**64, squares % 2**64


def _mark_schedule(checkpoint: dict[str, Tensor], config: Path) -> None:
    """Set in the scheduler what empty tensors of the file say about its training."""
    for name, settings in SCHEDULE_MARKS.items():
        if name in checkpoint:
            write_json(config, read_json(config) | settings)
