"""The oracle: reads the factors of a scene from its pixels by fitting the renderer to them.

It first reads the colours, as the palette entries that best explain the border and the other pixels. It then fits
position, radius and rotation of each shape by Gauss-Newton on the rendered coverage. The shape with the smallest error
is chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIDES,
    SIZES,
    Scenes,
    coverage,
    coverage_of,
    palette,
)

VALID_RESIDUAL = 0.12
VALID_DISTORTION = 0.065

CHUNK = 256
BORDER = 2
SIZE_THRESHOLD = (SIZES["small"][1] + SIZES["large"][0]) / 2
SIDE_THRESHOLD = (SIDES["left"][1] + SIDES["right"][0]) / 2

# Gauss-Newton over (x, y, radius) in pixels and rotation in degrees. The bounds are slightly wider than the world's
# ranges. Rotations beyond 22 degrees are excluded: a square could otherwise fit a small cross whose notches the
# decoder has filled.
LOWEST = (6.0, 6.0, 3.0, -22.0)
HIGHEST = (26.0, 26.0, 13.0, 22.0)
LARGEST_STEP = (1.5, 1.5, 1.0, 10.0)
# Coverage changes only within a pixel of the edge. Wide finite differences reach beyond it, so the fit does not stall.
DIFFERENCES = (0.3, 0.3, 0.3, 3.0)
DAMPING = 1e-3
STARTING_ROTATIONS = (-16.0, 16.0)
NUM_COARSE_STEPS = 3
NUM_FINE_STEPS = 5


@dataclass(frozen=True)
class Reading:
    """The oracle's reading of B images.

    scenes: the factors of the best re-rendering, even if it explains the image badly.
    residual: (B,) root mean square over pixels and channels of image - re-rendering, in units of [-1, 1].
    distortion: (B,) the same after a 3 x 3 box filter, divided by the contrast (root mean square over channels of
        colour - background). It measures the structure that the scene does not explain, in units of its contrast.
    valid: (B,) bool, true for a clean scene: residual <= VALID_RESIDUAL and distortion <= VALID_DISTORTION.
    """

    scenes: Scenes
    residual: Tensor
    distortion: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.valid)

    def __getitem__(self, index) -> "Reading":
        return Reading(self.scenes[index], self.residual[index], self.distortion[index], self.valid[index])


@torch.no_grad()
def read_scenes(images: Tensor) -> Reading:
    """Read the factors of images (B, 3, 32, 32) in [-1, 1] by fitting the renderer, and judge which images are valid.

    The result is deterministic and takes about 1.3 ms per image on one core. It is computed on the CPU for images on
    any device. The rotation of a circle is undefined, and arbitrary in the result.
    Raises ValueError for other image shapes, or for values that are not finite.

    Accuracy, measured on 2048 scenes and checked in `tests/world/test_oracle.py`. Size, colour, background and side are
    read without an error in every row. The next columns are mean absolute errors in pixels and degrees, without the
    rotation of circles:

        images                  shape right   x and y   radius   rotation   residual   valid
        as rendered             1.000         0.00      0.00     0.00       0.000      1.00
        noise of std 0.1        1.000         0.01      0.01     0.1        0.100      0.97
        noise of std 0.2        1.000         0.02      0.02     0.2        0.200      0.00
        noise of std 0.4        1.000         0.05      0.04     0.4        0.400      0.00
        blur of sigma 1 pixel   1.000         0.08      0.08     1.5        0.072      0.95

    Validity has two thresholds because the residual alone cannot distinguish a low-contrast shape blurred beyond
    recognition (0.05) from a sharp shape with noise or decoder artefacts (up to 0.10). The distortion therefore
    compares the unexplained structure with the contrast of the scene. It is at most 0.063 for noise of std 0.08 and for
    the built-in decoder. It is at least 0.081 for blur of sigma 2.5, 0.070 for blobs and 0.12 for empty images.
    All scenes with noise up to std 0.08 and all reconstructions of the decoder are valid. Of the following, at most
    0.4 % are valid: blends of two scenes, images with two shapes, blobs, empty images, scenes blurred by 2 pixels, and
    scenes whose colours are pushed by a factor of 1.5 (their factors are still read correctly).
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"images must be (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) in [-1, 1], got {tuple(images.shape)}; "
            "the oracle can read images of the built-in world only"
        )
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ValueError("images contain NaN or infinity; the model that generated them has probably diverged")
    parts = [_read_chunk(chunk) for chunk in images.split(CHUNK)]
    background, colour, shape, geometry, residual, distortion = (torch.cat(part) for part in zip(*parts, strict=True))
    x, y, radius, rotation = geometry.unbind(1)
    discrete = {
        "shape": shape,
        "colour": colour,
        "size": (radius > SIZE_THRESHOLD).long(),
        "background": background,
        "side": (x > SIDE_THRESHOLD).long(),
    }
    scenes = Scenes(discrete, {"x": x, "y": y, "radius": radius, "rotation": rotation})
    valid = (residual <= VALID_RESIDUAL) & (distortion <= VALID_DISTORTION)
    return Reading(scenes, residual, distortion, valid)


def _read_chunk(images: Tensor) -> tuple[Tensor, ...]:
    """Background, colour, shape, geometry (B, 4), residual and distortion of at most CHUNK images."""
    background = _read_background(images)
    backdrop = palette(BACKGROUNDS)[background]
    colour = _read_colour(images, backdrop)
    direction = palette(COLOURS)[colour] - backdrop
    # Least-squares coverage of every pixel: 0 for the colour of the background, 1 for that of the shape.
    pixels = images - backdrop[:, :, None, None]
    signal = torch.einsum("bchw,bc->bhw", pixels, direction) / direction.square().sum(1)[:, None, None]
    shape, geometry = _fit(signal)
    error = pixels - coverage_of(shape, *geometry.unbind(1))[:, None] * direction[:, :, None, None]
    residual = error.square().mean((1, 2, 3)).sqrt()
    structure = F.avg_pool2d(error, 3, 1, 1, count_include_pad=False).square().mean((1, 2, 3)).sqrt()
    return background, colour, shape, geometry, residual, structure / direction.square().mean(1).sqrt()


def _read_background(images: Tensor) -> Tensor:
    """The palette entry nearest to the median of the outermost pixels, most of which no shape covers."""
    border = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return torch.cdist(images[:, :, border].median(dim=2).values, palette(BACKGROUNDS)).argmin(1)


def _read_colour(images: Tensor, backdrop: Tensor) -> Tensor:
    """The colour c that minimises sum over pixels p of min over m in [0, 1] of |p - backdrop - m (c - backdrop)|^2."""
    pixels = (images - backdrop[:, :, None, None]).flatten(2)
    direction = palette(COLOURS)[None] - backdrop[:, None]
    length = direction.square().sum(2)[:, :, None]
    along = torch.bmm(direction, pixels)
    part = (along / length).clamp(0, 1)
    # |p|^2 is omitted because it is the same for all candidates.
    return (part.square() * length - 2 * part * along).sum(2).argmin(1)


def _start(signal: Tensor) -> Tensor:
    """Initial geometry (B, 4) from the moments of the smoothed, thresholded signal (B, 32, 32); rotation 0."""
    smooth = F.avg_pool2d(signal[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    # Noise in the background would pull the moments of the raw signal towards the centre of the image.
    weight = ((smooth - 0.35) / 0.3).clamp(0, 1)
    mass = weight.sum((1, 2)).clamp_min(1.0)
    centres = torch.arange(IMAGE_SIZE) + 0.5
    x = (weight.sum(1) * centres).sum(1) / mass
    y = (weight.sum(2) * centres).sum(1) / mass
    # Every shape has an area of about 3 radius^2.
    geometry = torch.stack([x, y, (mass / 3).sqrt(), torch.zeros_like(x)], dim=1)
    return geometry.clamp(torch.tensor(LOWEST), torch.tensor(HIGHEST))


def _gauss_newton(shape: str, start: Tensor, signal: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The best geometry (B, 4) found and its error (B,), sum over pixels of (coverage - signal)^2."""
    num_free = 3 if shape == "circle" else 4
    low, high, limit, differences = (torch.tensor(v) for v in (LOWEST, HIGHEST, LARGEST_STEP, DIFFERENCES))
    current, mask = start, coverage(shape, *start.unbind(1))
    best, best_error = start, (mask - signal).square().sum((1, 2))
    for _ in range(num_steps):
        moved = [current + differences * F.one_hot(torch.tensor(i), 4) for i in range(num_free)]
        jacobian = torch.stack([(coverage(shape, *m.unbind(1)) - mask).flatten(1) for m in moved], dim=1)
        normal = torch.bmm(jacobian, jacobian.transpose(1, 2))
        normal = normal + torch.diag_embed(DAMPING * normal.diagonal(dim1=1, dim2=2) + 1e-4)
        gradient = torch.bmm(jacobian, (signal - mask).flatten(1)[:, :, None])
        step = torch.linalg.solve(normal, gradient).squeeze(2) * differences[:num_free]
        step = F.pad(step.clamp(-limit[:num_free], limit[:num_free]), (0, 4 - num_free))
        current = (current + step).clamp(low, high)
        mask = coverage(shape, *current.unbind(1))
        error = (mask - signal).square().sum((1, 2))
        better = error < best_error
        best = torch.where(better[:, None], current, best)
        best_error = torch.where(better, error, best_error)
    return best, best_error


def _fit(signal: Tensor) -> tuple[Tensor, Tensor]:
    """The shape (B,) and geometry (B, 4) that explain the signal (B, 32, 32) best."""
    start = _start(signal)
    fits, errors = [], []
    for shape in SHAPES:
        geometry, error = _gauss_newton(shape, start, signal, NUM_COARSE_STEPS)
        if shape != "circle":
            for rotation in STARTING_ROTATIONS:
                turned = torch.cat([start[:, :3], torch.full_like(start[:, :1], rotation)], dim=1)
                other, other_error = _gauss_newton(shape, turned, signal, NUM_COARSE_STEPS)
                geometry = torch.where((other_error < error)[:, None], other, geometry)
                error = torch.minimum(other_error, error)
        geometry, error = _gauss_newton(shape, geometry, signal, NUM_FINE_STEPS)
        fits.append(geometry)
        errors.append(error)
    shape = torch.stack(errors).argmin(0)
    return shape, torch.stack(fits, dim=1)[torch.arange(len(shape)), shape]
