"""From the name of a quality score to its scorer."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from dpdmd.vision.quality.base import QualityScorer
from dpdmd.vision.weights import Weights, find_weights

# The one table of scores: name -> module of this package, function in it, and the weights where the hub has them as
# safetensors. docs/evaluation.md says how to convert the others.
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
    """Raises ValueError, before any weights are read, for what `load_quality` does not take, or a name given twice."""
    names = [text.partition("=")[0] for text in texts]
    for text, name in zip(texts, names, strict=True):
        if name not in QUALITY:
            raise ValueError(f"no quality score is called {name!r}; there are {', '.join(QUALITY)}")
        if not (text.partition("=")[2] or QUALITY[name][2]):
            raise ValueError(
                f"{name} needs a folder of its weights, {name}=FOLDER: the hub has none as safetensors, and "
                "docs/evaluation.md says how to convert them"
            )
        if names.count(name) > 1:
            raise ValueError(f"quality score {name} is named twice")


def quality_weights(text: str) -> Weights:
    """The weights of "NAME" or "NAME=WEIGHTS", WEIGHTS a folder or hub id; downloaded where they are not cached.

    Raises ValueError like `require_known`, and for weights that cannot be had.
    """
    require_known([text])
    name, _, place = text.partition("=")
    return find_weights(place or QUALITY[name][2])


def load_quality(text: str, *, device: str = "cpu", weights: Weights | None = None) -> QualityScorer:
    """The scorer of "NAME" or "NAME=WEIGHTS".

    weights: what `quality_weights` has found for it; default: looked for. Raises ValueError like `quality_weights`, and
    for weights that do not fit.
    """
    weights = weights or quality_weights(text)
    name = text.partition("=")[0]
    module, function, _ = QUALITY[name]
    score = getattr(importlib.import_module(f"dpdmd.vision.quality.{module}"), function)(weights, device)
    return QualityScorer(name, score, weights)


def weights_file(folder: Path) -> Path:
    """The only .safetensors file of a folder. Raises ValueError when there are several."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} must hold one .safetensors file, got {len(files)}")
    return files[0]
