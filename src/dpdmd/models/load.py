"""From a name to a model: a built-in teacher, a pipeline folder, a hub id, a run or an export."""

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.method.grids import Grid
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import LatentShape, ModelAdapter
from dpdmd.models.pipeline_files import checked_index, read_index
from dpdmd.models.student_file import BaseLora, StudentFile, StudentSize
from dpdmd.store.errors import library_errors, reading
from dpdmd.store.names import did_you_mean, local_or_hub_id

# The built-in teachers: a flow and a noise-predicting model of scenes, and a noise-predicting one of drawings, each a
# folder in dpdmd.world.
BUILT_IN = {"scenes": "teacher", "scenes_eps": "teacher_eps", "drawings": "drawings/teacher"}

# All families: pipeline class -> module and adapter class.
FAMILIES = {
    "ChromaPipeline": ("dpdmd.models.chroma", "ChromaAdapter"),
    "ErnieImagePipeline": ("dpdmd.models.ernie_image", "ErnieImageAdapter"),
    "Flux2KleinPipeline": ("dpdmd.models.flux2_klein", "Flux2KleinAdapter"),
    "FluxPipeline": ("dpdmd.models.flux", "FluxAdapter"),
    "Krea2Pipeline": ("dpdmd.models.krea2", "Krea2Adapter"),
    "LongCatImagePipeline": ("dpdmd.models.longcat_image", "LongCatImageAdapter"),
    "Lumina2Pipeline": ("dpdmd.models.lumina2", "Lumina2Adapter"),
    "PixArtSigmaPipeline": ("dpdmd.models.pixart_sigma", "PixArtSigmaAdapter"),
    "QwenImagePipeline": ("dpdmd.models.qwen_image", "QwenImageAdapter"),
    "SanaPipeline": ("dpdmd.models.sana", "SanaAdapter"),
    "StableDiffusion3Pipeline": ("dpdmd.models.sd3", "SD3Adapter"),
    "StableDiffusionPipeline": ("dpdmd.models.stable_diffusion", "StableDiffusionAdapter"),
    "StableDiffusionXLPipeline": ("dpdmd.models.sdxl", "SDXLAdapter"),
    "ZImagePipeline": ("dpdmd.models.z_image", "ZImageAdapter"),
}


@dataclass(frozen=True)
class Sampler:
    """A model that is ready to sample.

    grid: of a student, whose grid is part of the model; None for a teacher.
    kind, embedded_guidance, image_size (height, width in pixels): what a student was trained for; None: the
    model's own.
    base: the teacher that a student was made from; None for a teacher. negative_prompt: what a student's teacher was
    guided away from. base_loras: LoRAs of a student's teacher. sizes: of a student that was trained
    at several.
    """

    adapter: ModelAdapter
    network: nn.Module
    grid: Grid | None
    guidance_scale: float
    kind: StudentKind = "ode"
    embedded_guidance: float | None = None
    image_size: tuple[int | None, int | None] | None = None
    base: str | None = None
    negative_prompt: str = ""
    base_loras: tuple[BaseLora, ...] = ()
    sizes: tuple[StudentSize, ...] = ()

    @property
    def student_grid(self) -> Grid | None:
        """The grid of a student at its image size; None for a teacher."""
        if not self.sizes:
            return self.grid
        return self.adapter.sized_grid(grids_of(self.adapter, self.sizes), self.latent_shape())

    def latent_shape(self) -> LatentShape:
        """(C, H, W) of the latents of one image."""
        return self.adapter.latent_shape(*(self.image_size or ()))


def grids_of(adapter: ModelAdapter, sizes: Sequence[StudentSize]) -> dict[LatentShape, Grid]:
    """{latent shape: grid} of the sizes of a student."""
    return {adapter.latent_shape(size.height, size.width): Grid(size.grid) for size in sizes}


def built_in_teacher(name: str = "scenes") -> Path:
    """The folder of a shipped teacher.

    "scenes" is a StableDiffusion3Pipeline, "scenes_eps" and "drawings" are StableDiffusionXLPipelines.
    """
    return Path(str(files("dpdmd.world") / BUILT_IN[name]))


def pipeline_class(source: str) -> str:
    """The pipeline class that a folder or hub id names in its model_index.json.

    Raises ValueError if there is no such model.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{source} is a folder but not a diffusers pipeline: it has no model_index.json")
        return read_index(source)["_class_name"]
    if folder.is_file():
        raise ValueError(
            f"{source} is a single file, and a model is a pipeline folder: `dpdmd new {source} --base NAME --out FILE` "
            "makes one of it"
        )
    names = ", ".join(map(repr, BUILT_IN))
    if "/" not in source:  # no pipeline on the hub has a name without its owner's
        nearest = difflib.get_close_matches(source, BUILT_IN, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else did_you_mean(source)
        raise ValueError(f"{source!r} is neither a built-in model ({names}) nor a folder{hint}")
    from diffusers import DiffusionPipeline

    with library_errors(f"{source!r} is neither a built-in model ({names}) nor a folder; as a hub id"):
        index: Any = DiffusionPipeline.load_config(source)
    return checked_index(dict(index), source)["_class_name"]


def load_adapter(source: str, loras: Sequence[BaseLora] = ()) -> ModelAdapter:
    """The adapter for a model's family; loras: to merge into its network, each checked as a whole.

    Raises ValueError for an unknown model or family, and for a LoRA that does not fit.
    """
    folder = str(built_in_teacher(source)) if source in BUILT_IN else local_or_hub_id(source)
    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise ValueError(f"{source}: {name} is not a supported family; supported: {', '.join(sorted(FAMILIES))}")
    module, adapter_class = FAMILIES[name]
    adapter_class = getattr(importlib.import_module(module), adapter_class)
    with library_errors(f"{source}: its configurations do not describe a {name}"):
        adapter: ModelAdapter = adapter_class(folder)
    # What every use of the model begins with, so that values which make no sense are found here.
    with reading(source, f"{adapter.network_name} and vae configurations"):
        shape = adapter.latent_shape()
    with reading(source, "scheduler configuration"):
        adapter.stock_grid(adapter.num_inference_steps, shape)
    if loras:
        from dpdmd.models.base_loras import require_loras

        require_loras(adapter, loras)
        adapter.loras = tuple(loras)
    return adapter


def published_models() -> dict[str, Path]:
    """{hub id: folder of its JSON files, without weights} of the public models whose configurations ship with us."""
    folder = Path(str(files("dpdmd.models"))) / "published"
    return {path.name.replace("--", "/", 1): path for path in sorted(folder.iterdir())}


def planning_adapter(source: str, loras: Sequence[BaseLora] = ()) -> ModelAdapter:
    """The adapter of a model of which only configurations are needed: to plan a training, not to run one.

    For the public models of the shipped recipes it reads the configurations in the package, so that neither network
    nor account is needed. Of `loras` those on this machine are checked. Raises ValueError like `load_adapter`.
    """
    published, here = published_models(), [lora for lora in loras if Path(local_or_hub_id(lora.path)).exists()]
    adapter = load_adapter(str(published.get(source, source)), here)
    if source in published:
        adapter.source = source
    adapter.loras = tuple(loras)
    return adapter


def sampling_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype of a network that draws images: as it is stored, but fp32 for fp16 on a CPU, which is slow in it."""
    return torch.float32 if stored == torch.float16 and not torch.cuda.is_available() else stored


def load_sampler(
    model: str, dtype: torch.dtype | None = None, *, base: str | None = None, loras: Sequence[BaseLora] = ()
) -> Sampler:
    """Load a model to sample from.

    dtype: of the network; default: `sampling_dtype` of the base's. base: for a LoRA student, the model into which
    it is merged; default: the one that it was trained for. loras: to merge into a teacher, or into this base; a
    student has those of its own base.

    model: a teacher (built-in name, pipeline folder or hub id), a run folder (its best student, else its newest),
    RUN@STEP, a folder of a student, a checkpoint, or an exported pipeline.
    Raises ValueError if it cannot be loaded, for a student with `loras`, and for one whose weights have changed.
    """
    from dpdmd.models.find import find_student, located
    from dpdmd.models.identity import warn_of_another_base
    from dpdmd.models.student_file import exported_student

    model = located(model)
    folder = Path(model)
    if (student := find_student(folder)) is not None:
        info = StudentFile.read(student)
        info.require_its_weights(student)
        if base is not None:
            info = info.model_copy(update={"base": base, "base_loras": tuple(loras)})
        elif loras:
            raise ValueError(f"{model} is a student, which has the LoRAs of its teacher already; give none")
        try:
            adapter = load_adapter(info.base, info.loras_to_merge(student))
        except ValueError as error:
            hint = info.how_to_move_base(student)
            raise ValueError(f"cannot load the base of the student {student}: {error}{hint}") from None
        if base is None:
            warn_of_another_base(student, info)
        return _student(adapter, _trained_network(adapter, student, dtype), info)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{model} is neither a run that has written a student or a checkpoint nor a pipeline folder "
            "(model_index.json)"
        )
    if loras and exported_student(folder) is not None:
        raise ValueError(f"{model} is a student, which has the LoRAs of its teacher already; give none")
    adapter = load_adapter(model, loras)
    network = adapter.load_network(dtype or sampling_dtype(adapter.stored_dtype))
    if (info := exported_student(folder)) is not None:
        return _student(adapter, network, info)
    network.eval().requires_grad_(False)
    return Sampler(adapter, network, None, adapter.guidance_scale, embedded_guidance=adapter.embedded_guidance)


def _student(adapter: ModelAdapter, network: nn.Module, info: StudentFile) -> Sampler:
    return Sampler(
        adapter,
        network.eval().requires_grad_(False),
        Grid(info.grid),
        info.guidance_scale,
        kind=info.kind,
        embedded_guidance=info.embedded_guidance,
        image_size=info.image_size,
        base=info.base,
        negative_prompt=info.negative_prompt,
        base_loras=info.base_loras,
        sizes=info.sizes,
    )


def _trained_network(adapter: ModelAdapter, student: Path, dtype: torch.dtype | None) -> nn.Module:
    """The base's network with the student's weights, or with the student's LoRA merged into it."""
    from dpdmd.models.student_file import LORA_FILE

    network = adapter.load_network(dtype or sampling_dtype(adapter.stored_dtype))
    if (student / LORA_FILE).is_file():
        from dpdmd.models.lora import merge_lora

        merge_lora(adapter, network, student)
        return network
    from dpdmd.models.weights import load_weights

    load_weights(network, student, adapter.source)
    return network
