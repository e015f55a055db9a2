"""Load quality scorers by name."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from dpdmd.vision.quality.base import QualityScorer
from dpdmd.vision.weights import Weights, find_weights

# The table of all scores: name -> module in this package, function in it, and the hub id of the weights if the hub has
# them as safetensors. docs/evaluation.md explains how to convert the others.
QUALITY: dict[str, tuple[str, str, str | None]] = {
    "clip_score": ("clip", "clip_score", "openai/clip-vit-large-patch14"),
    "clip_iqa": ("clip", "clip_iqa", "openai/clip-vit-large-patch14"),
    "pick_score": ("clip", "pick_score", "yuvalkirstain/PickScore_v1"),
    "hps_v21": ("clip", "hps_v21", None),
    "image_reward": ("image_reward", "image_reward", None),
    "visual_quality_r1": ("visual_quality_r1", "visual_quality_r1", "TianheWu/VisualQuality-R1-7B"),
    "maniqa": ("maniqa", "maniqa", None),
}


def require_known(texts: Sequence[str]) -> None:
    """Raise ValueError, without reading weights, for scores that `load_quality` does not know, or a repeated name."""
    names = [text.partition("=")[0] for text in texts]
    for text, name in zip(texts, names, strict=True):
        if name not in QUALITY:
            raise ValueError(f"there is no quality score {name!r}; choose from {', '.join(QUALITY)}")
        if not (text.partition("=")[2] or QUALITY[name][2]):
            raise ValueError(
                f"{name} needs a folder with its weights, {name}=FOLDER, because the hub does not have them as "
                "safetensors; docs/evaluation.md explains how to convert them"
            )
        if names.count(name) > 1:
            raise ValueError(f"quality score {name} is given twice; give each name once")


def quality_weights(text: str) -> Weights:
    """Find the weights of "NAME" or "NAME=WEIGHTS" (WEIGHTS: folder or hub id), downloaded unless they are cached.

    Raises ValueError as `require_known` does, and if the weights cannot be found.
    """
    require_known([text])
    name, _, place = text.partition("=")
    source = place or QUALITY[name][2]
    assert source is not None  # else `require_known` has raised an error
    return find_weights(source)


def load_quality(text: str, *, device: str = "cpu", weights: Weights | None = None) -> QualityScorer:
    """Load the scorer "NAME" or "NAME=WEIGHTS".

    weights: the result of `quality_weights(text)`, if it is known already.
    Raises ValueError as `quality_weights` does, and if the weights do not fit.
    """
    weights = weights or quality_weights(text)
    name = text.partition("=")[0]
    module, function, _ = QUALITY[name]
    score = getattr(importlib.import_module(f"dpdmd.vision.quality.{module}"), function)(weights, device)
    return QualityScorer(name, score, weights)


def weights_file(folder: Path) -> Path:
    """The only .safetensors file of a folder. Raises ValueError unless there is exactly one."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} must contain exactly one .safetensors file, got {len(files)}")
    return files[0]
