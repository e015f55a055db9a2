"""The oracle of the drawings: which drawing an image shows, and whether it shows one at all."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.world.drawings.catalogue import IMAGE_SIZE, catalogue

# Luma and the two scaled colour differences of BT.601: brightness counts fully, colour with about half of its weight.
LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
SHIFT = 1  # pixels in each direction that an image may be shifted by
# The nearest drawings of two things are 0.093 apart: no drawing of one thing is a clean drawing of another.
VALID_DISTANCE = 0.09
CHUNK = 64


@dataclass(frozen=True)
class DrawingReading:
    """The oracle's reading of B images.

    drawing: (B,) index of the nearest drawing in the catalogue. distance: (B,) to it, as in `distances`.
    valid: (B,) bool, distance <= VALID_DISTANCE, and nearer to the drawing than to the empty page: some are faint.
    """

    drawing: Tensor
    distance: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.valid)

    def __getitem__(self, index) -> "DrawingReading":
        return DrawingReading(self.drawing[index], self.distance[index], self.valid[index])


@torch.no_grad()
def read_drawings(images: Tensor) -> DrawingReading:
    """Read images (B, 3, 32, 32) in [-1, 1]: the nearest drawing, and whether it is near enough.

    The result is deterministic and computed on the CPU. Raises ValueError for other image shapes, or for values that
    are not finite.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"images must be (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) in [-1, 1], got {tuple(images.shape)}; "
            "the oracle can read images of the world of drawings only"
        )
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ValueError("images contain NaN or infinity; the model that generated them has probably diverged")
    nearest = [distances(chunk).min(1) for chunk in images.split(CHUNK)]
    distance, drawing = torch.cat([near.values for near in nearest]), torch.cat([near.indices for near in nearest])
    from_blank = luma_chroma(1 - images.clamp(-1, 1)).square().sum(1).mean((1, 2)).sqrt()
    return DrawingReading(drawing, distance, (distance <= VALID_DISTANCE) & (distance < from_blank))


def distances(images: Tensor) -> Tensor:
    """Distances (B, N) of images (B, 3, 32, 32) in [-1, 1] to all drawings, the least over shifts by SHIFT pixels.

    The root over pixels of the mean of luma^2 + blue difference^2 + red difference^2, with values in [0, 1]. A shifted
    image repeats its border.
    """
    drawings, lengths = _drawings()
    padded = F.pad(images.clamp(-1, 1), (SHIFT,) * 4, mode="replicate")
    best = torch.full((len(images), len(drawings)), torch.inf)
    for y in range(2 * SHIFT + 1):
        for x in range(2 * SHIFT + 1):
            vectors = luma_chroma(padded[:, :, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]).flatten(1)
            squares = vectors.square().sum(1)[:, None] + lengths - 2 * vectors @ drawings.T
            best = torch.minimum(best, squares)
    return (best.clamp_min(0) / IMAGE_SIZE**2).sqrt()


def luma_chroma(images: Tensor) -> Tensor:
    """Luma and colour differences, (B, 3, H, W), of images (B, 3, H, W) in [-1, 1], in units of [0, 1]."""
    return torch.einsum("kc,bchw->bkhw", torch.tensor(LUMA_CHROMA), images / 2)


@cache
def _drawings() -> tuple[Tensor, Tensor]:
    """The vectors of all drawings and their squared lengths (N,)."""
    vectors = luma_chroma(catalogue().images).flatten(1)
    return vectors, vectors.square().sum(1)
