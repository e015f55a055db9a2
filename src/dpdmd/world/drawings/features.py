"""Features of drawings without a network: their colours at half of the resolution, less those of the mean drawing."""

from functools import cache

from torch import Tensor
from torch.nn import functional as F

from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import luma_chroma

CELL = 4  # a side of a cell, in pixels of the half-size picture


def drawing_features(images: Tensor) -> tuple[Tensor, Tensor]:
    """Features of images (B, 3, 32, 32) in [-1, 1]: pooled (B, 768), and of the 4 x 4 cells (B, 16, 48).

    Without the mean drawing all would share the white of the page, and every pairwise cosine would be close to one.
    """
    small = _small(images.float().cpu()) - _mean()
    cells = F.unfold(small, CELL, stride=CELL).transpose(1, 2)
    return small.flatten(1), cells


def _small(images: Tensor) -> Tensor:
    return F.avg_pool2d(luma_chroma(images), 2)


@cache
def _mean() -> Tensor:
    return _small(catalogue().images).mean(0)
