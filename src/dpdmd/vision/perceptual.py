"""The LPIPS-type distance between two images (arXiv 1801.03924), and the backbones whose feature maps it compares.

    "scenes"            the built-in world's feature network: four feature maps of 32 x 32 scenes
    FILE.safetensors    LPIPS: a VGG16 or AlexNet trunk and its learned channel weights, in one file (`lpips_shapes`)
    folder or hub id    any transformers vision model: the hidden states of four of its layers

A backbone maps images (B, 3, H, W) in [-1, 1] to a list of feature maps (B, C, ...). It is frozen, but passes gradients
to the images.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpdmd.store.names import did_you_mean, expanded, local_or_hub_id

SCENES = "scenes"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
# Added inside the square root, whereas LPIPS adds 1e-10 to the root: the derivative of the root is infinite at a
# position whose features are all zero after a ReLU. The distances differ in the seventh digit.
EPSILON = 1e-10
NUM_HIDDEN_STATES = 4


def perceptual_distance(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """The LPIPS distance (B,) between two lists of feature maps.

        d = sum over layers l of mean over positions p of sum over channels c of w_lc (a_lcp - b_lcp)^2

    a and b are the features, scaled to unit length over the channels at every position.
    first, second: one (B, C, ...) per layer, with any number of spatial axes.
    weights: one (C,) per layer; default: 1. With the default, a position contributes 2 - 2 cos(a, b), between 0 and 4.
    Source: arXiv 1801.03924, eq. 1; differs: the weights are outside the square, as in the authors' released networks.
    """
    by_layer = [None] * len(first) if weights is None else weights
    total = first[0].new_zeros(())
    for a, b, weight in zip(first, second, by_layer, strict=True):
        difference = (_unit(a.float().flatten(2)) - _unit(b.float().flatten(2))).square()  # (B, C, places)
        per_place = difference.sum(dim=1) if weight is None else torch.einsum("bcp,c->bp", difference, weight)
        total = total + per_place.mean(dim=1)
    return total


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(dim=1, keepdim=True) + EPSILON).rsqrt()


class PerceptualDistance:
    """The LPIPS-type distance d(first, second) (B,) between images (B, 3, H, W) in [-1, 1], by a named backbone.

    Constructing it reads only names and shapes. The weights are loaded by the first call, to the device of the images.
    Only the images receive gradients.
    """

    def __init__(self, backbone: str, image_size: tuple[int, int]):
        """Check the backbone.

        backbone: see the module's docstring. image_size: height and width of the images, in pixels.
        Raises ValueError if the backbone does not exist, is of another kind, or does not accept images of this size.
        """
        self.backbone = expanded(backbone)
        _check(self.backbone, image_size)

    @cached_property
    def network(self) -> "Backbone":
        """The frozen backbone, in fp32."""
        return load_backbone(self.backbone)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        network = self.network.to(first.device)
        return perceptual_distance(network(first.float()), network(second.float()), network.weights)


class SceneBackbone(nn.Module):
    """The four feature maps of `world.features.SceneFeatures`, with equal channel weights."""

    weights = None

    def __init__(self) -> None:
        from dpdmd.world.features import load_scene_features

        super().__init__()
        self.features = load_scene_features()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features.maps(images)


class Lpips(nn.Module):
    """The feature maps after five ReLUs of a trunk, and the learned weight of every channel."""

    # The normalisation that LPIPS applies to images in [-1, 1].
    MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, tensors: dict[str, Tensor]):
        """tensors: as listed by `lpips_shapes`; tensors on the meta device give a network without data."""
        super().__init__()
        with torch.device("meta"):
            self.trunk, self.taps = TRUNKS[tuple(tensors["features.0.weight"].shape)]()
        trunk = {name.removeprefix("features."): t for name, t in tensors.items() if name.startswith("features.")}
        self.trunk.load_state_dict(trunk, assign=True)
        for i in range(len(self.taps)):
            self.register_buffer(f"weight_{i}", tensors[f"lin{i}.model.1.weight"].flatten())

    @property
    def weights(self) -> list[Tensor]:
        """The channel weights, one (C,) per layer."""
        return [getattr(self, f"weight_{i}") for i in range(len(self.taps))]

    def forward(self, images: Tensor) -> list[Tensor]:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.MEAN, self.STD))
        hidden, maps = (images - mean) / std, []
        for i, layer in enumerate(self.trunk):
            hidden = layer(hidden)
            if i in self.taps:
                maps.append(hidden)
        return maps


def _vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Layers numbered as in torchvision's `vgg16().features`, and the indices of those whose output is used."""
    layers: list[nn.Module] = []
    before = 3
    for width, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1]), (3, 8, 15, 22, 29)


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Layers numbered as in torchvision's `alexnet().features`, and the indices of those whose output is used."""
    layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


# Identified by the shape of the first convolution's weight, in which the two trunks differ.
TRUNKS: dict[tuple[int, ...], Callable[[], tuple[nn.Sequential, tuple[int, ...]]]] = {
    (64, 3, 3, 3): _vgg16,
    (64, 3, 11, 11): _alexnet,
}


def lpips_shapes(first: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all tensors in a file of LPIPS weights whose "features.0.weight" has the shape `first`.

    The trunk has `features.N.weight` and `features.N.bias`, named as in torchvision's VGG16 (N = 0, 2, 5, ... 28) or
    AlexNet (N = 0, 3, 6, 8, 10). The channel weights are `linK.model.1.weight` (1, C, 1, 1) for K = 0 ... 4, named as
    in the LPIPS release (v0.1).
    Raises ValueError unless `first` is that of VGG16, (64, 3, 3, 3), or of AlexNet, (64, 3, 11, 11).
    """
    if first not in TRUNKS:
        raise ValueError(
            f"features.0.weight must be (64, 3, 3, 3) for VGG16 or (64, 3, 11, 11) for AlexNet, got {first}"
        )
    with torch.device("meta"):
        trunk, taps = TRUNKS[first]()
    shapes: dict[str, tuple[int, ...]] = {
        f"features.{name}": tuple(tensor.shape) for name, tensor in trunk.state_dict().items()
    }
    widths = [cast("nn.Conv2d", trunk[tap - 1]).out_channels for tap in taps]
    return shapes | {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(widths)}


class VisionModel(nn.Module):
    """The hidden states of four evenly spaced layers of a transformers vision model, including the last one.

    Images are stretched to the size that the model expects. Only patch tokens are used, with equal channel weights.
    """

    weights = None

    def __init__(self, name: str):
        """Load the model. Raises ValueError if a file is missing or the model is not a vision model."""
        from dpdmd.vision.features import load_vision_model

        super().__init__()
        self.network, preprocessing = load_vision_model(name)
        size = preprocessing.crop or preprocessing.resize
        self.size = (size, size) if isinstance(size, int) else size
        self.mean, self.std = preprocessing.mean, preprocessing.std

    def forward(self, images: Tensor) -> list[Tensor]:
        images = (images + 1) / 2
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        states = self.network(pixel_values=(images - mean) / std, output_hidden_states=True).hidden_states
        last = len(states) - 1  # the first hidden state is the input of the layers
        chosen = [states[round(last * i / NUM_HIDDEN_STATES)] for i in range(1, NUM_HIDDEN_STATES + 1)]
        return [self._places(state, images.shape[-2:]) for state in chosen]

    def _places(self, state: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, ...) from a convolutional feature map, returned unchanged, or from tokens (B, N, C)."""
        if state.ndim == 4:
            return state
        patch = getattr(self.network.config, "patch_size", 1)
        height, width = (patch, patch) if isinstance(patch, int) else patch
        num_patches = (size[0] // height) * (size[1] // width)
        return state[:, -num_patches:].transpose(1, 2)  # class and register tokens come first


Backbone = SceneBackbone | Lpips | VisionModel


def load_backbone(name: str) -> Backbone:
    """Load a backbone by name, frozen, in fp32, on the CPU; its `weights` are the channel weights, None if all equal.

    Raises ValueError if it cannot be loaded.
    """
    if name == SCENES:
        return SceneBackbone()
    if name.endswith(".safetensors"):
        from dpdmd.store.tensors import read_tensors

        tensors = read_tensors(name)
        wanted = lpips_shapes(tuple(tensors["features.0.weight"].shape))
        return Lpips({key: tensors[key].float() for key in wanted}).eval().requires_grad_(False)
    return VisionModel(name)


def _check(name: str, image_size: tuple[int, int]) -> None:
    """Raise ValueError, without reading weights, unless `name` is a backbone that accepts images of this size."""
    if name == SCENES:
        from dpdmd.world.scenes import IMAGE_SIZE

        if tuple(image_size) != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f'backbone "scenes" works for the built-in world only, with images of {IMAGE_SIZE} x {IMAGE_SIZE} '
                f"pixels, got {image_size[0]} x {image_size[1]}; give a file of LPIPS weights or a vision model instead"
            )
    elif Path(name).suffix in PICKLES:
        raise ValueError(
            f"backbone {name} is a pickle, which can run code when it is opened; convert it once to a .safetensors "
            "file with features.* of torchvision's VGG16 or AlexNet and lin*.model.1.weight of LPIPS, as shown in "
            "docs/perceptual.md"
        )
    elif name.endswith(".safetensors"):
        _check_lpips(name, image_size)
    else:
        _check_vision_model(name)


def _check_lpips(name: str, image_size: tuple[int, int]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(name, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"backbone {name} is not a readable safetensors file ({error}){did_you_mean(name)}") from None
    try:
        wanted = lpips_shapes(shapes.get("features.0.weight", ()))
    except ValueError as error:
        raise ValueError(f"backbone {name} does not contain LPIPS weights: {error}") from None
    wrong = [
        f"{key} {shapes.get(key, 'missing')}, expected {wanted[key]}"
        for key in wanted
        if shapes.get(key) != wanted[key]
    ]
    if wrong:
        raise ValueError(
            f"backbone {name} does not contain LPIPS weights: {len(wrong)} tensors differ, the first is {wrong[0]}"
        )
    try:
        Lpips({key: torch.empty(shape, device="meta") for key, shape in wanted.items()})(
            torch.empty(1, 3, *image_size, device="meta")
        )
    except RuntimeError:
        raise ValueError(
            f"backbone {name} downsamples too often for images of {image_size[0]} x {image_size[1]} pixels; use larger "
            "images or another backbone"
        ) from None


def _check_vision_model(name: str) -> None:
    from dpdmd.vision.features import read_vision_config
    from dpdmd.vision.preprocessing import read_preprocessing

    try:
        read_vision_config(local_or_hub_id(name))
        read_preprocessing(name)
    except ValueError as error:
        raise ValueError(
            f"backbone {name!r} is neither {SCENES!r}, nor a .safetensors file of LPIPS weights, nor the folder or hub "
            f"id of a transformers vision model with config.json and preprocessor_config.json ({error})"
        ) from None
