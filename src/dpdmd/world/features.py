"""Perceptual features of the built-in world: a small network trained to recognise the factors of scenes.

Pairwise cosine distances and Frechet distances between generated scenes are computed on these features.
`weights/README.md` documents how the weights were trained and how strongly each factor changes the features.
"""

from importlib import resources

import torch
from torch import Tensor, nn

from dpdmd.store.tensors import read_tensors
from dpdmd.world.scenes import IMAGE_SIZE

FEATURE_DIM = 64
WEIGHTS = "scene_features.safetensors"


class SceneFeatures(nn.Module):
    """Four convolutions on pixels and their coordinates, followed by pooling, a linear map and centring.

        feature = linear(mean over positions of convolutions(image)) - mean

    `mean` is the average feature of the world's own scenes. Without it all scenes would share a large common component
    and every pairwise cosine would be close to one. Training also rescales `linear` so that every factor of a scene
    changes the features in reasonable proportion (`balance` in `tools/pretrain/features.py`).
    """

    mean: Tensor
    coordinates: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (5, 32, 64, 96, 96), (2, 2, 1, 2)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1], FEATURE_DIM)
        self.register_buffer("mean", torch.zeros(FEATURE_DIM))
        ramp = torch.linspace(-1, 1, IMAGE_SIZE)
        grid = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"))
        self.register_buffer("coordinates", grid, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64) of images (B, 3, 32, 32) in [-1, 1]. Raises ValueError for other image shapes."""
        return self.project(self.maps(images)[-1].mean(dim=(2, 3))) - self.mean

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each of the four convolutions.

        Returns (B, 32, 16, 16), (B, 64, 8, 8), (B, 96, 8, 8) and (B, 96, 4, 4).
        Raises ValueError for other image shapes.
        """
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"images must be (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) in [-1, 1], got {tuple(images.shape)}; "
                "scene features work for images of the built-in world only"
            )
        coordinates = self.coordinates.expand(len(images), -1, -1, -1)
        hidden, maps = torch.cat([images, coordinates], dim=1), []
        for i in range(0, len(self.convolutions), 3):  # convolution, normalisation, activation
            hidden = self.convolutions[i : i + 3](hidden)
            maps.append(hidden)
        return maps


def load_scene_features() -> SceneFeatures:
    """Load the network with the weights shipped in the package, frozen and in evaluation mode.

    Raises ValueError if the weights are missing from the installation or corrupt.
    """
    network = SceneFeatures()
    with resources.as_file(resources.files("dpdmd.world") / "weights" / WEIGHTS) as path:
        network.load_state_dict(read_tensors(path))
    return network.eval().requires_grad_(False)
