"""Image features, from the built-in world's own network or from any transformers vision model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.models.checked import load_checked
from dpdmd.models.sizes import require_plausible_file
from dpdmd.store.cache import batches
from dpdmd.store.digests import key_of
from dpdmd.store.errors import library_errors
from dpdmd.vision.preprocessing import Preprocessing, read_preprocessing
from dpdmd.vision.weights import Weights, find_weights

SCENES = "scenes"
DRAWINGS = "drawings"
OF_WORLDS = (SCENES, DRAWINGS)
CLIP_TYPES = ("clip", "clip_vision_model")
# The network of the paper's main results. Its licence has to be accepted on the hub before the weights can be loaded.
DEFAULT_MODEL = "facebook/dinov3-vitl16-pretrain-lvd1689m"
# Rows and columns of the grid over whose cells local features are averaged. 4 x 4 is fine enough for the position and
# orientation of objects, and takes 16 times the memory of a pooled feature.
GRID = 4


@dataclass(frozen=True)
class Features:
    """Features of N images, in fp32.

    pooled: (N, D), one vector per image.
    places: (N, P, D'), one vector per cell of a grid over the image; None if the network has no local features.
    """

    pooled: Tensor
    places: Tensor | None = None

    def per_prompt(self, num_prompts: int) -> "Features":
        """Group images that are ordered by prompt: `pooled` (P, R, D) and `places` (P, R, P', D'), R images each."""
        places = None if self.places is None else self.places.unflatten(0, (num_prompts, -1))
        return Features(self.pooled.unflatten(0, (num_prompts, -1)), places)


@dataclass(frozen=True)
class FeatureExtractor:
    """A loaded feature network.

    name: the name that was requested.
    extract: maps images (B, 3, H, W) in [-1, 1] to features.
    identity: cache key, which changes whenever the features may change; None: features too cheap to be cached.
    source: facts about the network for the record of a result.
    """

    name: str
    extract: Callable[[Tensor], Features]
    identity: str | None = None
    source: dict[str, Any] | None = None


def extract_features(
    extractor: str | Path | FeatureExtractor, images: Tensor | Iterable[Tensor], *, batch_size: int = 32
) -> Features:
    """Compute the features of images (N, 3, H, W) in [-1, 1], or of an iterable of images (3, H, W), on the CPU.

    extractor: "scenes", the folder or hub id of a transformers vision model, or a loaded extractor.
    An iterable is read batch by batch, so a folder of large images does not have to fit in memory.
    Raises ValueError as `load_extractor` does, and if there are no images.
    """
    if not isinstance(extractor, FeatureExtractor):
        extractor = load_extractor(extractor)
    return joined_features(list(feature_rows(extractor, images, batch_size)))


def feature_rows(extractor: FeatureExtractor, images: Iterable[Tensor], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yield the features of each image on the CPU: "pooled" (D,) and, if there are any, "places" (P, D').

    Images are processed in batches of at most `batch_size` images of equal size.
    """
    for batch in batches(images, batch_size, alike=lambda first, other: first.shape == other.shape):
        with torch.no_grad():
            found = extractor.extract(torch.stack(batch))
        pooled = found.pooled.float().cpu()
        places = None if found.places is None else found.places.float().cpu()
        for i in range(len(batch)):
            # Cloned because a view of one row would keep the whole batch in memory.
            yield {"pooled": pooled[i].clone()} | ({} if places is None else {"places": places[i].clone()})


def joined_features(rows: list[dict[str, Tensor]]) -> Features:
    """Stack the rows of `feature_rows`. Raises ValueError if there are none."""
    if not rows:
        raise ValueError("there are no images to compute features of")
    places = torch.stack([row["places"] for row in rows]) if "places" in rows[0] else None
    return Features(torch.stack([row["pooled"] for row in rows]), places)


def load_extractor(name: str | Path, *, device: str = "cpu", local_files_only: bool = False) -> FeatureExtractor:
    """Load a feature extractor by name: that of a built-in world, or the folder or hub id of a transformers model.

    For a CLIP model, `pooled` is the class token of the last hidden state (before the projection). For any other model
    it is the pooler_output, or the first token if there is none. `places` are means of the patch tokens.
    Raises ValueError if weights or preprocessor_config.json cannot be found, or if the model is not a vision model.
    Source: arXiv 2602.03139, which uses DINOv3 and CLIP in this way.
    """
    if str(name) == SCENES:
        from dpdmd.world.features import load_scene_features

        scenes = load_scene_features()

        def extract_scenes(images: Tensor) -> Features:
            return Features(scenes(images), _cells(scenes.maps(images)[-1]))

        return FeatureExtractor(SCENES, extract_scenes, source={"name": SCENES})
    if str(name) == DRAWINGS:
        from dpdmd.world.drawings.features import drawing_features

        return FeatureExtractor(DRAWINGS, lambda images: Features(*drawing_features(images)), source={"name": DRAWINGS})
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


def load_vision_model(name: str | Path, *, local_files_only: bool = False) -> tuple[Any, Preprocessing]:
    """Load a transformers vision model, frozen and in fp32, and its preprocessing, by folder or hub id.

    For CLIP only the vision tower is loaded. A network saved without its pooler, as classifiers are, has none.
    Raises ValueError if a file is missing or broken, or the model is not a vision model.
    """
    from transformers import AutoModel, CLIPVisionModel

    options: dict[str, Any] = {"local_files_only": local_files_only}
    config = read_vision_config(name, local_files_only)
    preprocessing = read_preprocessing(name, local_files_only)
    model_class = CLIPVisionModel if config.model_type in CLIP_TYPES else AutoModel
    options |= {"optional": ("pooler",), "unused": ("mask_token",)}
    network = load_checked(model_class, name, "feature network's weights", **options)
    if getattr(network, "main_input_name", "") != "pixel_values":
        raise ValueError(f"{str(name)!r} is a {config.model_type} model, not a vision model")
    return network.eval().requires_grad_(False), preprocessing


def read_vision_config(name: str | Path, local_files_only: bool = False) -> Any:
    """The config.json of a transformers model, whose own code is not run. Raises ValueError if it cannot be read."""
    from transformers import AutoConfig

    require_plausible_file(Path(name), name, "feature network's")
    with library_errors(_missing(name)):
        return AutoConfig.from_pretrained(name, local_files_only=local_files_only, trust_remote_code=False)


def _find(name: str | Path, local_files_only: bool) -> Weights:
    with library_errors(_missing(name)):
        return find_weights(name, local_files_only=local_files_only)


def _missing(name: str | Path) -> str:
    return (
        f"no feature model at {str(name)!r}: expected {SCENES!r}, or a folder or hub id with config.json, "
        "preprocessor_config.json and safetensors weights"
    )


def _places(network: Any, hidden: Tensor, size: Sequence[int]) -> Tensor | None:
    """Grid cells (B, P, D) of a last hidden state, or None if it has no known spatial layout.

    hidden: a feature map (B, D, h, w), or tokens (B, N, D) that end with the patch tokens.
    size: height and width of the network's input, in pixels.
    """
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
    """Average feature maps (B, D, h, w) over the cells of a grid, (B, P, D); maps smaller than the grid are kept."""
    height, width = maps.shape[-2:]
    return F.adaptive_avg_pool2d(maps, (min(GRID, height), min(GRID, width))).flatten(2).transpose(1, 2)
