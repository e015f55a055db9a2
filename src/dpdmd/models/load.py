"""From a name to a model: a built-in teacher, a pipeline folder, a hub id, a run of ours, an export of ours."""

import importlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from dpdmd.method.grids import Grid
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import LatentShape, ModelAdapter
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_tensors

# The built-in teachers: a flow and a noise-predicting one, each a folder in dpdmd.world.
BUILT_IN = {"scenes": "teacher", "scenes_eps": "teacher_eps"}
STUDENT_FILE = "student.json"
WEIGHTS_FILE = "student.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
BEST_FILE = "best.json"

# The one table of families: pipeline class -> module and adapter class.
FAMILIES = {
    "FluxPipeline": ("dpdmd.models.flux", "FluxAdapter"),
    "QwenImagePipeline": ("dpdmd.models.qwen_image", "QwenImageAdapter"),
    "SanaPipeline": ("dpdmd.models.sana", "SanaAdapter"),
    "StableDiffusion3Pipeline": ("dpdmd.models.sd3", "SD3Adapter"),
    "StableDiffusionXLPipeline": ("dpdmd.models.sdxl", "SDXLAdapter"),
    "ZImagePipeline": ("dpdmd.models.z_image", "ZImageAdapter"),
}


@dataclass(frozen=True)
class Sampler:
    """A model ready to sample: `grid` is set for students only, whose grid is part of the model.

    kind, embedded_guidance, image_size (height, width): what else a student was trained for; None: the model's own.
    base: the teacher that a student was made of, None for a teacher.
    """

    adapter: ModelAdapter
    network: nn.Module
    grid: Grid | None
    guidance_scale: float
    kind: StudentKind = "ode"
    embedded_guidance: float | None = None
    image_size: tuple[int, int] | None = None
    base: str | None = None

    def latent_shape(self) -> LatentShape:
        """(C, H, W) of one image's latents."""
        return self.adapter.latent_shape(*(self.image_size or ()))


def _student(adapter: ModelAdapter, network: nn.Module, info: dict[str, Any]) -> Sampler:
    """A student from what student.json says of it."""
    return Sampler(
        adapter,
        network.eval().requires_grad_(False),
        Grid(tuple(info["grid"])),
        1.0,
        kind=info.get("kind", "ode"),
        embedded_guidance=info.get("embedded_guidance"),
        image_size=None if info.get("height") is None else (info["height"], info["width"]),
        base=info["base"],
    )


def built_in_teacher(name: str = "scenes") -> Path:
    """The folder of a shipped teacher: "scenes", a StableDiffusion3Pipeline, or "scenes_eps", a
    StableDiffusionXLPipeline."""
    return Path(str(files("dpdmd.world") / BUILT_IN[name]))


def pipeline_class(source: str) -> str:
    """The pipeline class that a folder or hub id names in its model_index.json.

    Raises ValueError when there is no such model.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{source} is a folder but no diffusers pipeline: it has no model_index.json")
        return read_json(folder / "model_index.json").get("_class_name", "unknown")
    from diffusers import DiffusionPipeline

    from dpdmd.models.parts import reading

    names = ", ".join(map(repr, BUILT_IN))
    with reading(f"{source!r} is no built-in model ({names}) and no folder; as a hub id", "model_index.json"):
        return DiffusionPipeline.load_config(source).get("_class_name", "unknown")


def load_adapter(source: str) -> ModelAdapter:
    """The adapter of the model's family. Raises ValueError for unknown models and families."""
    folder = str(built_in_teacher(source)) if source in BUILT_IN else source
    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise ValueError(f"{source}: {name} is not a supported family; supported: {', '.join(sorted(FAMILIES))}")
    module, adapter = FAMILIES[name]
    return getattr(importlib.import_module(module), adapter)(folder)


def load_sampler(model: str) -> Sampler:
    """A model to sample from: teacher (built-in, folder, hub id), run folder, a student that a run has kept, its folder
    of best ones, or an export of a pipeline or a LoRA.

    Raises ValueError when it cannot be loaded.
    """
    folder = Path(model)
    if (student := find_student(folder)) is not None:
        return _load_student(student)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{model} is neither a finished run (student/{STUDENT_FILE}) nor a pipeline folder (model_index.json)"
        )
    adapter = load_adapter(model)
    network = adapter.load_network()
    if (folder / STUDENT_FILE).is_file():
        return _student(adapter, network, read_json(folder / STUDENT_FILE))
    network.eval().requires_grad_(False)
    return Sampler(adapter, network, None, adapter.guidance_scale, embedded_guidance=adapter.embedded_guidance)


def find_student(folder: Path) -> Path | None:
    """Where the weights are of a finished run, of the best of a folder students/best or of one student that a run has
    kept; None for anything else."""
    if (folder / "student" / STUDENT_FILE).is_file():
        return folder / "student"
    if (folder / BEST_FILE).is_file():
        return folder / read_json(folder / BEST_FILE)["students"][0]["folder"]
    is_student = (folder / STUDENT_FILE).is_file()
    return folder if is_student and any((folder / name).is_file() for name in (WEIGHTS_FILE, LORA_FILE)) else None


def _load_student(student: Path) -> Sampler:
    info = read_json(student / STUDENT_FILE)
    adapter = load_adapter(info["base"])
    network = adapter.load_network()
    if (student / LORA_FILE).is_file():
        from dpdmd.models.lora import merge_lora

        merge_lora(adapter, network, student)
        return _student(adapter, network, info)
    weights = read_tensors(student / WEIGHTS_FILE)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{student / WEIGHTS_FILE} does not fit {info['base']}: {error}") from None
    return _student(adapter, network, info)
