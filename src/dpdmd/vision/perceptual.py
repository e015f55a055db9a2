"""The LPIPS-type distance of two images (arXiv 1801.03924), and the networks whose feature maps it compares.

    "scenes"            the built-in world's feature network, four maps of 32 x 32 scenes
    FILE.safetensors    LPIPS: a VGG16 or AlexNet trunk and its learned channel weights, in one file (`lpips_shapes`)
    folder or hub id    any transformers vision model, the hidden states of four of its layers

A backbone maps images (B, 3, H, W) in [-1, 1] to a list of feature maps (B, C, ...) and is frozen; gradient passes
through it to the images.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCENES = "scenes"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
# Under the root, where LPIPS adds 1e-10 behind it: the root's own derivative is infinite where a rectifier has left
# nothing of a place. The distances differ in the seventh digit.
EPSILON = 1e-10
NUM_HIDDEN_STATES = 4


def perceptual_distance(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """d (B,) = sum over layers l of mean over places p of sum over channels c of w_lc (a_lcp - b_lcp)^2.

    a, b: the maps of two images, every place scaled to length 1 over its channels (arXiv 1801.03924, eq. 1, with
    the weights outside of the square, as its released networks have them).

    first, second: per layer (B, C, ...), any number of axes of places. weights: per layer (C,); default 1, which makes
    a layer's term 2 - 2 cos of the features at a place, between 0 and 4.
    """
    weights = [None] * len(first) if weights is None else weights
    total = 0
    for a, b, weight in zip(first, second, weights, strict=True):
        difference = (_unit(a.float().flatten(2)) - _unit(b.float().flatten(2))).square()  # (B, C, places)
        per_place = difference.sum(dim=1) if weight is None else torch.einsum("bcp,c->bp", difference, weight)
        total = total + per_place.mean(dim=1)
    return total


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(dim=1, keepdim=True) + EPSILON).rsqrt()


class PerceptualDistance:
    """d(first, second) (B,) of images (B, 3, H, W) in [-1, 1], as the network `backbone` sees them.

    Making one reads names and shapes only; weights are loaded at the first call, to where the images are. The images
    alone receive gradient.
    """

    def __init__(self, backbone: str, image_size: tuple[int, int]):
        """`image_size`: height and width in pixels of what will be compared.

        Raises ValueError for a backbone that is not there, is no such network, or cannot see images of this size.
        """
        self.backbone = backbone
        _check(backbone, image_size)

    @cached_property
    def network(self) -> nn.Module:
        """The frozen backbone, in fp32."""
        return load_backbone(self.backbone)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        network = self.network.to(first.device)
        return perceptual_distance(network(first.float()), network(second.float()), network.weights)


class SceneBackbone(nn.Module):
    """The four maps of `world.features.SceneFeatures`, all channels alike."""

    weights = None

    def __init__(self) -> None:
        from dpdmd.world.features import load_scene_features

        super().__init__()
        self.features = load_scene_features()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features.maps(images)


class Lpips(nn.Module):
    """The maps behind five rectifiers of a trunk, and the learned weight of every channel."""

    # LPIPS's own scaling of images in [-1, 1].
    MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, tensors: dict[str, Tensor]):
        """tensors: as `lpips_shapes` lists them. On the meta device they make a network without data."""
        super().__init__()
        with torch.device("meta"):
            self.trunk, self.taps = TRUNKS[tuple(tensors["features.0.weight"].shape)]()
        trunk = {name.removeprefix("features."): t for name, t in tensors.items() if name.startswith("features.")}
        self.trunk.load_state_dict(trunk, assign=True)
        for i in range(len(self.taps)):
            self.register_buffer(f"weight_{i}", tensors[f"lin{i}.model.1.weight"].flatten())

    @property
    def weights(self) -> list[Tensor]:
        """Per layer (C,)."""
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
    """Layers numbered as torchvision's `vgg16().features`, and behind which of them a map is taken."""
    layers: list[nn.Module] = []
    before = 3
    for width, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1]), (3, 8, 15, 22, 29)


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """The same of torchvision's `alexnet().features`."""
    layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


# By the shape of the first convolution, in which the two differ.
TRUNKS = {(64, 3, 3, 3): _vgg16, (64, 3, 11, 11): _alexnet}


def lpips_shapes(first: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a file of LPIPS weights holds whose "features.0.weight" has the shape `first`.

    `features.N.weight` and `features.N.bias` of the trunk as torchvision's VGG16 (N = 0, 2, 5, ... 28) or AlexNet
    (N = 0, 3, 6, 8, 10) name them; `linK.model.1.weight` (1, C, 1, 1), K = 0 ... 4, as the LPIPS release (v0.1) does.
    Raises ValueError for another shape than VGG16's (64, 3, 3, 3) and AlexNet's (64, 3, 11, 11).
    """
    if first not in TRUNKS:
        raise ValueError(
            f"features.0.weight must be (64, 3, 3, 3) for VGG16 or (64, 3, 11, 11) for AlexNet, got {first}"
        )
    with torch.device("meta"):
        trunk, taps = TRUNKS[first]()
    shapes = {f"features.{name}": tuple(tensor.shape) for name, tensor in trunk.state_dict().items()}
    return shapes | {f"lin{k}.model.1.weight": (1, trunk[tap - 1].out_channels, 1, 1) for k, tap in enumerate(taps)}


class VisionModel(nn.Module):
    """The hidden states of four layers of a transformers vision model, at even distances, the last one included.

    Images are stretched to the size that the model expects. Of tokens those of patches are kept; all channels count
    alike.
    """

    weights = None

    def __init__(self, name: str):
        """Raises ValueError when a file is missing or the model is no vision model."""
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
        last = len(states) - 1  # the first is what the layers are given
        chosen = [states[round(last * i / NUM_HIDDEN_STATES)] for i in range(1, NUM_HIDDEN_STATES + 1)]
        return [self._places(state, images.shape[-2:]) for state in chosen]

    def _places(self, state: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, ...) of a convolutional map, which is one already, or of tokens (B, N, C)."""
        if state.ndim == 4:
            return state
        patch = getattr(self.network.config, "patch_size", 1)
        height, width = (patch, patch) if isinstance(patch, int) else patch
        num_patches = (size[0] // height) * (size[1] // width)
        return state[:, -num_patches:].transpose(1, 2)  # class and register tokens stand before those of patches


def load_backbone(name: str) -> nn.Module:
    """The frozen network of a name, in fp32 on the CPU; `weights` are its channels', None for all alike.

    Raises ValueError for what cannot be loaded.
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
    """Raises ValueError, having read no weights, unless `name` is a backbone that sees images of this size."""
    if name == SCENES:
        from dpdmd.world.scenes import IMAGE_SIZE

        if tuple(image_size) != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f'backbone "scenes" knows the built-in world only, {IMAGE_SIZE} x {IMAGE_SIZE} pixels, and the images '
                f"have {image_size[0]} x {image_size[1]}: name a file of LPIPS weights or a vision model instead"
            )
    elif Path(name).suffix in PICKLES:
        raise ValueError(
            f"backbone {name} is a pickle, which can run code when it is opened; convert it once to a .safetensors "
            "file with features.* of torchvision's VGG16 or AlexNet and lin*.model.1.weight of LPIPS, as "
            "docs/perceptual.md shows"
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
        raise ValueError(f"backbone {name} is no readable safetensors file ({error})") from None
    try:
        wanted = lpips_shapes(shapes.get("features.0.weight", ()))
    except ValueError as error:
        raise ValueError(f"backbone {name} holds no LPIPS weights: {error}") from None
    wrong = [
        f"{key} {shapes.get(key, 'missing')}, expected {wanted[key]}"
        for key in wanted
        if shapes.get(key) != wanted[key]
    ]
    if wrong:
        raise ValueError(
            f"backbone {name} holds no LPIPS weights: {len(wrong)} tensors differ, the first is {wrong[0]}"
        )
    try:
        Lpips({key: torch.empty(shape, device="meta") for key, shape in wanted.items()})(
            torch.empty(1, 3, *image_size, device="meta")
        )
    except RuntimeError:
        raise ValueError(
            f"backbone {name} halves images too often for {image_size[0]} x {image_size[1]} pixels"
        ) from None


def _check_vision_model(name: str) -> None:
    from transformers import AutoConfig

    from dpdmd.vision.features import read_preprocessing

    try:
        AutoConfig.from_pretrained(name)
        read_preprocessing(name)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"backbone {name!r} is neither {SCENES!r}, nor a .safetensors file of LPIPS weights, nor the folder or hub "
            f"id of a transformers vision model with config.json and preprocessor_config.json ({reason})"
        ) from None
