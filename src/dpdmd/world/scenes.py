"""The built-in world: scenes generated from factors whose distribution is known exactly.

A scene is one coloured shape on a uniform background. As in natural images, some factors depend on others: a colour has
a favourite background, and a shape has a favourite side. Guidance and a reverse-KL objective sharpen exactly such
dependences, so their effect on diversity can be measured against the truth.

    shape       uniform over SHAPES
    colour      uniform over COLOURS
    size        uniform over SIZES ("small" or "large", each an interval of radii)
    background  FAVOURITE_BACKGROUND[colour] with probability 0.46, else uniform over the other five
    side        FAVOURITE_SIDE[shape] with probability 0.70, else the other one
    x, y, radius, rotation   uniform on intervals (pixels, degrees); x on the interval of its side
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE_SIZE = 32

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 30, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 230),
    "yellow": (245, 210, 30),
    "purple": (150, 50, 190),
    "cyan": (40, 200, 220),
}
BACKGROUNDS = {
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "pink": (250, 160, 185),
    "brown": (110, 65, 30),
    "navy": (15, 25, 85),
}
SIZES = {"small": (5.0, 7.0), "large": (8.5, 10.5)}
SIDES = {"left": (9.5, 14.0), "right": (18.0, 22.5)}
Y_RANGE = (10.5, 21.5)
ROTATION_RANGE = (-20.0, 20.0)

DISCRETE_FACTORS = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
    "side": tuple(SIDES),
}
CONTINUOUS_FACTORS = ("x", "y", "radius", "rotation")

FAVOURITE_BACKGROUND = {
    "red": "black",
    "green": "white",
    "blue": "gray",
    "yellow": "navy",
    "purple": "pink",
    "cyan": "brown",
}
FAVOURITE_SIDE = {"circle": "left", "square": "right", "triangle": "left", "cross": "right"}
FAVOURITE_BACKGROUND_PROB = 0.46
FAVOURITE_SIDE_PROB = 0.70


@dataclass(frozen=True)
class Scenes:
    """The factors of B scenes.

    discrete: name -> (B,) int64 indices into DISCRETE_FACTORS[name].
    continuous: name -> (B,) float32, in pixels; rotation in degrees.
    """

    discrete: dict[str, Tensor]
    continuous: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.discrete["shape"])

    def __getitem__(self, index) -> "Scenes":
        return Scenes(
            {name: value[index] for name, value in self.discrete.items()},
            {name: value[index] for name, value in self.continuous.items()},
        )


def joint_probability() -> Tensor:
    """The table P(shape, colour, size, background, side), with its axes in the order of DISCRETE_FACTORS.

    Every conditional distribution of the world follows from it by slicing and summing.
    """
    num_shapes, num_colours, num_sizes, num_backgrounds, num_sides = (len(v) for v in DISCRETE_FACTORS.values())
    background = torch.full((num_colours, num_backgrounds), (1 - FAVOURITE_BACKGROUND_PROB) / (num_backgrounds - 1))
    for i, colour in enumerate(COLOURS):
        background[i, tuple(BACKGROUNDS).index(FAVOURITE_BACKGROUND[colour])] = FAVOURITE_BACKGROUND_PROB
    side = torch.full((num_shapes, num_sides), 1 - FAVOURITE_SIDE_PROB)
    for i, shape in enumerate(SHAPES):
        side[i, tuple(SIDES).index(FAVOURITE_SIDE[shape])] = FAVOURITE_SIDE_PROB
    table = background[None, :, None, :, None] * side[:, None, None, None, :]
    return (table / (num_shapes * num_colours * num_sizes)).expand(
        num_shapes, num_colours, num_sizes, num_backgrounds, num_sides
    )


def conditional_probability(factor: str, named: dict[str, str]) -> Tensor:
    """The exact conditional distribution P(factor | named factors), (number of values,).

    Raises ValueError for an unknown factor or value.
    """
    names = list(DISCRETE_FACTORS)
    if factor not in names:
        raise ValueError(f"factor must be one of {names}, got {factor!r}")
    table = joint_probability()
    for name, value in named.items():
        if name not in names or value not in DISCRETE_FACTORS[name]:
            raise ValueError(f"the built-in world has no factor {name!r} with value {value!r}")
        axis, index = names.index(name), DISCRETE_FACTORS[name].index(value)
        table = table.narrow(axis, index, 1)
    marginal = table.sum(dim=[axis for axis in range(len(names)) if axis != names.index(factor)])
    if factor in named:
        out = torch.zeros(len(DISCRETE_FACTORS[factor]))
        out[DISCRETE_FACTORS[factor].index(named[factor])] = 1.0
        return out
    return marginal / marginal.sum()


def sample_scenes(num_scenes: int, generator: torch.Generator) -> Scenes:
    """Draw `num_scenes` independent scenes from the world's distribution."""
    table = joint_probability()
    flat = torch.multinomial(table.flatten(), num_scenes, replacement=True, generator=generator)
    index = torch.unravel_index(flat, table.shape)
    discrete = dict(zip(DISCRETE_FACTORS, index, strict=True))

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        return low + (high - low) * torch.rand(num_scenes, generator=generator)

    radius_range = torch.tensor(list(SIZES.values()))[discrete["size"]]
    x_range = torch.tensor(list(SIDES.values()))[discrete["side"]]
    continuous = {
        "x": uniform(x_range[:, 0], x_range[:, 1]),
        "y": uniform(*Y_RANGE),
        "radius": uniform(radius_range[:, 0], radius_range[:, 1]),
        "rotation": uniform(*ROTATION_RANGE),
    }
    return Scenes(discrete, continuous)


def signed_distance(shape: str, px: Tensor, py: Tensor, radius: Tensor) -> Tensor:
    """Signed distance, in pixels and negative inside, from points (px, py) in the shape's own frame to its edge.

    Shapes of equal radius have about the same area, so that "small" and "large" look alike for all shapes.
    Raises ValueError for an unknown shape.
    """
    if shape == "circle":
        return torch.sqrt(px.square() + py.square() + 1e-12) - radius
    if shape == "square":
        return torch.maximum(px.abs(), py.abs()) - 0.88 * radius
    if shape == "triangle":
        # Equilateral, centroid at the origin, one corner up: three half-planes at distance inradius.
        inradius = 0.78 * radius
        slanted = 0.8660254 * px.abs() - 0.5 * py
        return torch.maximum(slanted, py) - inradius
    if shape == "cross":
        arm, half_width = 1.12 * radius, 0.40 * radius
        bar = torch.maximum(px.abs() - arm, py.abs() - half_width)
        return torch.minimum(bar, torch.maximum(py.abs() - arm, px.abs() - half_width))
    raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")


def coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, rotation: Tensor) -> Tensor:
    """Share of each pixel that a shape covers, (B, 32, 32) in [0, 1], from the distance at the centre of the pixel.

    x, y, radius: (B,) in pixels. rotation: (B,) in degrees, clockwise. The result is differentiable in all of them.
    """
    centres = torch.arange(IMAGE_SIZE, device=x.device) + 0.5
    dx = centres[None, None, :] - x[:, None, None]
    dy = centres[None, :, None] - y[:, None, None]
    angle = torch.deg2rad(rotation)[:, None, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    px, py = cos * dx + sin * dy, -sin * dx + cos * dy
    return (0.5 - signed_distance(shape, px, py, radius[:, None, None])).clamp(0, 1)


def coverage_of(shape: Tensor, *geometry: Tensor) -> Tensor:
    """`coverage` of scenes with different shapes, (B, 32, 32).

    shape: (B,), indices into SHAPES. geometry: x, y, radius and rotation, (B,) each.
    """
    mask = torch.empty(len(shape), IMAGE_SIZE, IMAGE_SIZE)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero().squeeze(1)
        if len(rows):
            mask[rows] = coverage(name, *(values[rows] for values in geometry))
    return mask


def palette(table: dict[str, tuple[int, int, int]]) -> Tensor:
    """The colours (N, 3) of COLOURS or BACKGROUNDS in [-1, 1]."""
    return torch.tensor(list(table.values())) / 127.5 - 1


def render(scenes: Scenes) -> Tensor:
    """Render scenes as antialiased images (B, 3, 32, 32) in [-1, 1]."""
    mask = coverage_of(scenes.discrete["shape"], *(scenes.continuous[name] for name in CONTINUOUS_FACTORS))
    colour = palette(COLOURS)[scenes.discrete["colour"]][:, :, None, None]
    background = palette(BACKGROUNDS)[scenes.discrete["background"]][:, :, None, None]
    return background + mask[:, None] * (colour - background)
