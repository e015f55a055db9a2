"""Features of images: the built-in network for the built-in world, any transformers vision model for the rest."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCENES = "scenes"
CLIP_TYPES = ("clip", "clip_vision_model")
# The network of the paper's main column; its weights are under a licence to accept on the hub.
DEFAULT_MODEL = "facebook/dinov3-vitl16-pretrain-lvd1689m"


@dataclass(frozen=True)
class FeatureExtractor:
    """`extract` maps images (B, 3, H, W) in [-1, 1] to features (B, D) fp32; `name` is what was asked for."""

    name: str
    extract: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What a vision model expects: shortest edge and centre crop in pixels (None: no such step), mean and std."""

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the model's input."""
        images = (images.float() + 1) / 2
        if self.resize is not None:
            height, width = images.shape[-2:]
            size = self.resize
            if isinstance(size, int):
                scale = size / min(height, width)
                size = (max(size, round(height * scale)), max(size, round(width * scale)))
            # An 8-bit image cannot leave [0, 1] after resizing, bicubic interpolation can.
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], self.crop, strict=True))
            if top < 0 or left < 0:
                raise ValueError(f"the model crops to {self.crop} pixels, the images have {tuple(images.shape[-2:])}")
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (self.mean, self.std))
        return (images - mean) / std


def extract_features(
    extractor: str | Path | FeatureExtractor, images: Tensor | Iterable[Tensor], *, batch_size: int = 32
) -> Tensor:
    """Features (N, D) fp32 on the CPU of images (N, 3, H, W) in [-1, 1], or of an iterable of single images (3, H, W).

    extractor: "scenes", the folder or hub id of a transformers vision model, or a loaded one.
    An iterable is read one batch at a time, so that a folder of large images need not fit in memory; the images of one
    batch must share a size. Raises ValueError like `load_extractor`, and when there are no images.
    """
    if not isinstance(extractor, FeatureExtractor):
        extractor = load_extractor(extractor)
    parts: list[Tensor] = []
    batch: list[Tensor] = []
    with torch.no_grad():
        for image in images:
            if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
                parts.append(extractor.extract(torch.stack(batch)).float().cpu())
                batch = []
            batch.append(image)
        if not batch:
            raise ValueError("no images to take features of")
        parts.append(extractor.extract(torch.stack(batch)).float().cpu())
    return torch.cat(parts)


def load_extractor(name: str | Path, *, device: str = "cpu", local_files_only: bool = False) -> FeatureExtractor:
    """The feature extractor of a name: "scenes", or the folder or hub id of a transformers vision model.

    A CLIP model gives the class token of its last hidden state (before the projection), any other its pooler_output,
    or the first token where it has none. Source: arXiv 2602.03139, which measures DINOv3 and CLIP in this way.
    Raises ValueError when weights or preprocessor_config.json cannot be found, or the model is no vision model.
    """
    if str(name) == SCENES:
        from dpdmd.world.features import load_scene_features

        return FeatureExtractor(SCENES, load_scene_features())
    network, preprocessing = load_vision_model(name, local_files_only=local_files_only)
    is_clip = network.config.model_type in CLIP_TYPES
    network.to(device)

    def extract(images: Tensor) -> Tensor:
        output = network(pixel_values=preprocessing(images.to(device)))
        pooled = None if is_clip else getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled

    return FeatureExtractor(str(name), extract)


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
        raise ValueError(
            f"no feature model at {str(name)!r}: expected {SCENES!r}, or a folder or hub id with config.json, "
            f"preprocessor_config.json and safetensors weights ({_first_line(error)})"
        ) from error
    if getattr(network, "main_input_name", "") != "pixel_values":
        raise ValueError(f"{str(name)!r} is a {config.model_type} model, not a vision model")
    return network.eval().requires_grad_(False), preprocessing


def read_preprocessing(name: str | Path, local_files_only: bool = False) -> Preprocessing:
    """The numbers of preprocessor_config.json; transformers' own image processors may ask for torchvision."""
    from transformers.utils import cached_file

    path = cached_file(name, "preprocessor_config.json", local_files_only=local_files_only)
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return Preprocessing(
        resize=_size(config.get("size")) if config.get("do_resize", True) else None,
        crop=_crop(config.get("crop_size")) if config.get("do_center_crop", False) else None,
        mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(config.get("image_std", (0.5, 0.5, 0.5))),
    )


def _size(size: dict[str, int] | int | None) -> tuple[int, int] | int | None:
    if isinstance(size, dict):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return size


def _crop(size: dict[str, int] | int | None) -> tuple[int, int] | None:
    size = _size(size)
    return (size, size) if isinstance(size, int) else size


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
