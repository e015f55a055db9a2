"""The teacher that a recipe names: a base, and the LoRAs that are merged into it."""

from pathlib import Path

from dpdmd.models.base import ModelAdapter
from dpdmd.models.load import load_adapter, planning_adapter
from dpdmd.models.student_file import BaseLora
from dpdmd.recipe import bounds
from dpdmd.recipe.schema import ModelConfig
from dpdmd.store.names import expanded, local_or_hub_id


def teacher_loras(model: ModelConfig) -> tuple[BaseLora, ...]:
    """The LoRAs of the teacher; those on this machine by their absolute paths."""
    return tuple(_placed(lora.path, lora.weight) for lora in model.loras)


def parse_lora(text: str) -> BaseLora:
    """A LoRA from "PATH" or "PATH:WEIGHT". Raises ValueError for a weight that a recipe would refuse."""
    path, _, weight = text.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        path, number = "", 1.0
    if not path or Path(expanded(text)).exists():
        path, number = text, 1.0
    if not 0 < abs(number) <= bounds.SCALE:
        limit = f"{bounds.SCALE:g}"
        raise ValueError(f"the weight of the LoRA {path} must be from -{limit} to {limit} and not 0, got {weight}")
    return _placed(local_or_hub_id(path), number)


def teacher_adapter(model: ModelConfig, *, planning: bool = False) -> ModelAdapter:
    """The adapter of the teacher; planning: of which only configurations are needed.

    Raises ValueError like `models.load.load_adapter`.
    """
    return (planning_adapter if planning else load_adapter)(model.teacher, teacher_loras(model))


def _placed(path: str, weight: float) -> BaseLora:
    place = Path(path)
    return BaseLora(path=str(place.resolve()) if place.exists() else path, weight=weight)
