"""Features of images: the built-in network for the built-in world, any transformers vision model for the rest."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpdmd.store.cache import batches
from dpdmd.store.digests import key_of
from dpdmd.vision.preprocessing import Preprocessing, read_preprocessing
from dpdmd.vision.weights import Weights, find_weights

SCENES = "scenes"
CLIP_TYPES = ("clip", "clip_vision_model")
# The network of the paper's main column; its weights are under a licence to accept on the hub.
DEFAULT_MODEL = "facebook/dinov3-vitl16-pretrain-lvd1689m"
# Features at places are means over the cells of a grid of so many rows and columns: fine enough for where things are
# and how they stand, and 16 times a pooled feature in memory.
GRID = 4


@dataclass(frozen=True)
class Features:
    """Of N images: `pooled` (N, D), one vector for the whole; `places` (N, P, D'), one for each place of a grid, or
    None of a network that has no places. fp32."""

    pooled: Tensor
    places: Tensor | None = None

    def per_prompt(self, num_prompts: int) -> "Features":
        """(P, R, D) and (P, R, P', D') of images that come prompt by prompt."""
        places = None if self.places is None else self.places.unflatten(0, (num_prompts, -1))
        return Features(self.pooled.unflatten(0, (num_prompts, -1)), places)


@dataclass(frozen=True)
class FeatureExtractor:
    """`extract` maps images (B, 3, H, W) in [-1, 1] to features; `name` is what was asked for.

    identity: a text that changes whenever the features may; None: too cheap to keep them. source: what to record.
    """

    name: str
    extract: Callable[[Tensor], Features]
    identity: str | None = None
    source: dict[str, Any] | None = None


def extract_features(
    extractor: str | Path | FeatureExtractor, images: Tensor | Iterable[Tensor], *, batch_size: int = 32
) -> Features:
    """Features on the CPU of images (N, 3, H, W) in [-1, 1], or of an iterable of single images (3, H, W).

    extractor: "scenes", the folder or hub id of a transformers vision model, or a loaded one.
    An iterable is read one batch at a time, so that a folder of large images need not fit in memory.
    Raises ValueError like `load_extractor`, and when there are no images.
    """
    if not isinstance(extractor, FeatureExtractor):
        extractor = load_extractor(extractor)
    return joined_features(list(feature_rows(extractor, images, batch_size)))


def feature_rows(extractor: FeatureExtractor, images: Iterable[Tensor], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """The features of one image after the other."""
    for batch in batches(images, batch_size, alike=lambda first, other: first.shape == other.shape):
        with torch.no_grad():
            found = extractor.extract(torch.stack(batch))
        pooled = found.pooled.float().cpu()
        places = None if found.places is None else found.places.float().cpu()
        for i in range(len(batch)):
            # Copies: a row of a batch would keep all of it in memory.
            yield {"pooled": pooled[i].clone()} | ({} if places is None else {"places": places[i].clone()})


def joined_features(rows: list[dict[str, Tensor]]) -> Features:
    if not rows:
        raise ValueError("no images to take features of")
    places = torch.stack([row["places"] for row in rows]) if "places" in rows[0] else None
    return Features(torch.stack([row["pooled"] for row in rows]), places)


def load_extractor(name: str | Path, *, device: str = "cpu", local_files_only: bool = False) -> FeatureExtractor:
    """The feature extractor of a name: "scenes", or the folder or hub id of a transformers vision model.

    Of a CLIP model `pooled` is the class token of its last hidden state (before the projection), of any other its
    pooler_output, or the first token where it has none; `places` are the tokens of patches. Source: arXiv 2602.03139,
    which measures DINOv3 and CLIP in this way.
    Raises ValueError when weights or preprocessor_config.json cannot be found, or the model is no vision model.
    """
    if str(name) == SCENES:
        from dpdmd.world.features import load_scene_features

        scenes = load_scene_features()

        def extract_scenes(images: Tensor) -> Features:
            return Features(scenes(images), _cells(scenes.maps(images)[-1]))

        return FeatureExtractor(SCENES, extract_scenes, source={"name": SCENES})
    weights = _find(name, local_files_only)
    network, preprocessing = load_vision_model(weights.folder, local_files_only=local_files_only)
    is_clip = network.config.model_type in CLIP_TYPES
    network.to(device)

    def extract(images: Tensor) -> Features:
        pixels = preprocessing(images.to(device))
        output = network(pixel_values=pixels)
        pooled = None if is_clip else getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state[:, 0] if pooled is None else pooled
        return Features(pooled.flatten(1), _places(network, output.last_hidden_state, pixels.shape[-2:]))

    identity = key_of("features 1", weights.sha256, repr(astuple(preprocessing)), str(GRID))
    return FeatureExtractor(str(name), extract, identity, weights.facts())


def load_vision_model(name: str | Path, *, local_files_only: bool = False) -> tuple[nn.Module, Preprocessing]:
    """A transformers vision model by folder or hub id, frozen, in fp32, and what it expects of its images.

    Of CLIP the vision tower. Raises ValueError when a file is missing or the model is no vision model.
    """
    from transformers import AutoConfig, AutoModel, CLIPVisionModel

    options = {"local_files_only": local_files_only}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        model_class = CLIPVisionModel if config.model_type in CLIP_TYPES else AutoModel
        network = model_class.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **options)
        preprocessing = read_preprocessing(name, local_files_only)
    except (OSError, ValueError) as error:
        raise ValueError(_missing(name, error)) from error
    if getattr(network, "main_input_name", "") != "pixel_values":
        raise ValueError(f"{str(name)!r} is a {config.model_type} model, not a vision model")
    return network.eval().requires_grad_(False), preprocessing


def _find(name: str | Path, local_files_only: bool) -> Weights:
    try:
        return find_weights(name, local_files_only=local_files_only)
    except ValueError as error:
        raise ValueError(_missing(name, error)) from None


def _missing(name: str | Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return (
        f"no feature model at {str(name)!r}: expected {SCENES!r}, or a folder or hub id with config.json, "
        f"preprocessor_config.json and safetensors weights ({reason})"
    )


def _places(network: nn.Module, hidden: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Cells (B, P, D) of a last hidden state: a map (B, D, h, w), or tokens (B, N, D), of which those of patches are
    the last."""
    if hidden.ndim == 4:
        return _cells(hidden)
    patch = getattr(network.config, "patch_size", None)
    if patch is None:
        return None
    height, width = (patch, patch) if isinstance(patch, int) else patch
    height, width = size[0] // height, size[1] // width
    if height * width > hidden.shape[1]:
        return None
    return _cells(hidden[:, -height * width :].transpose(1, 2).unflatten(2, (height, width)))


def _cells(maps: Tensor) -> Tensor:
    """Means over the cells of a grid, (B, D, h, w) to (B, P, D); of a smaller map every place is a cell."""
    size = tuple(min(GRID, side) for side in maps.shape[-2:])
    return F.adaptive_avg_pool2d(maps, size).flatten(2).transpose(1, 2)
