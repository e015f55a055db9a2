import pytest
import torch

from dpdmd.method.randomness import generator
from dpdmd.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    DISCRETE_FACTORS,
    FAVOURITE_BACKGROUND,
    FAVOURITE_SIDE,
    IMAGE_SIZE,
    ROTATION_RANGE,
    SHAPES,
    SIDES,
    SIZES,
    Y_RANGE,
    Scenes,
    conditional_probability,
    coverage,
    joint_probability,
    render,
    sample_scenes,
)


def geometry(x, y, radius, rotation):
    return tuple(torch.tensor([float(v)]) for v in (x, y, radius, rotation))


def test_joint_probability_is_a_distribution():
    table = joint_probability()
    assert table.shape == tuple(len(values) for values in DISCRETE_FACTORS.values())
    assert table.sum().item() == pytest.approx(1, abs=1e-5)
    assert table.min() > 0


def test_conditionals_are_those_of_the_definition():
    for colour, favourite in FAVOURITE_BACKGROUND.items():
        probability = conditional_probability("background", {"colour": colour, "shape": "circle"})
        expected = [0.46 if name == favourite else 0.108 for name in BACKGROUNDS]
        torch.testing.assert_close(probability, torch.tensor(expected))
    for shape, favourite in FAVOURITE_SIDE.items():
        expected = [0.7 if name == favourite else 0.3 for name in SIDES]
        torch.testing.assert_close(conditional_probability("side", {"shape": shape}), torch.tensor(expected))
    torch.testing.assert_close(conditional_probability("background", {}), torch.full((6,), 1 / 6))


def test_conditionals_follow_bayes_rule_against_the_causal_direction():
    # Colour is uniform and every background is one colour's favourite, so the posterior mirrors the likelihood.
    probability = conditional_probability("colour", {"background": "navy"})
    expected = [0.46 if FAVOURITE_BACKGROUND[colour] == "navy" else 0.108 for colour in COLOURS]
    torch.testing.assert_close(probability, torch.tensor(expected))


def test_a_named_factor_is_certain():
    assert conditional_probability("size", {"size": "large"}).tolist() == [0.0, 1.0]


def test_unknown_factors_and_values_are_refused():
    with pytest.raises(ValueError, match="factor must be one of"):
        conditional_probability("texture", {})
    with pytest.raises(ValueError, match="no factor 'colour' with value 'orange'"):
        conditional_probability("shape", {"colour": "orange"})


def test_samples_follow_the_joint_distribution():
    num = 60_000
    scenes = sample_scenes(num, generator(0, "scenes_test"))
    table = joint_probability()
    flat = torch.zeros(table.shape, dtype=torch.long)
    index = tuple(scenes.discrete.values())
    flat.index_put_(index, torch.ones(num, dtype=torch.long), accumulate=True)
    chi_square = ((flat - num * table).square() / (num * table)).sum().item()
    # Chi-square with k - 1 degrees of freedom has mean k - 1 and variance 2 (k - 1); four standard deviations.
    degrees = table.numel() - 1
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_continuous_factors_fill_their_intervals():
    scenes = sample_scenes(20_000, generator(1, "scenes_test"))

    def check(value, low, high):
        assert low <= value.min() and value.max() <= high
        # A uniform on n points leaves gaps of about 1 / n at the ends and has variance width^2 / 12.
        assert value.min() < low + 0.01 * (high - low) and value.max() > high - 0.01 * (high - low)
        assert value.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.03)

    check(scenes.continuous["y"], *Y_RANGE)
    check(scenes.continuous["rotation"], *ROTATION_RANGE)
    for i, interval in enumerate(SIZES.values()):
        check(scenes.continuous["radius"][scenes.discrete["size"] == i], *interval)
    for i, interval in enumerate(SIDES.values()):
        check(scenes.continuous["x"][scenes.discrete["side"] == i], *interval)


def test_sampling_repeats_with_the_generator():
    first, second = (sample_scenes(16, generator(2, "scenes_test")) for _ in range(2))
    for name in first.continuous:
        assert torch.equal(first.continuous[name], second.continuous[name])


@pytest.mark.parametrize(
    ("shape", "area_over_square_of_radius"),
    [
        ("circle", torch.pi),
        ("square", (2 * 0.88) ** 2),
        # Equilateral of inradius r: 3 sqrt(3) r^2.
        ("triangle", 3 * 3**0.5 * 0.78**2),
        # Two bars less their common square.
        ("cross", 2 * (2.24 * 0.8) - 0.8**2),
    ],
)
def test_coverage_adds_up_to_the_area_of_the_shape(shape, area_over_square_of_radius):
    for rotation in (0, 11):
        area = coverage(shape, *geometry(16.3, 15.8, 9, rotation)).sum().item()
        # Antialiasing by the distance at the centre rounds off corners by a fraction of a pixel each.
        assert area == pytest.approx(81 * area_over_square_of_radius, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_centroid_of_the_coverage_is_the_position(shape):
    mask = coverage(shape, *geometry(13.25, 17.5, 8, 7))[0]
    centres = torch.arange(IMAGE_SIZE) + 0.5
    assert ((mask.sum(0) * centres).sum() / mask.sum()).item() == pytest.approx(13.25, abs=0.05)
    assert ((mask.sum(1) * centres).sum() / mask.sum()).item() == pytest.approx(17.5, abs=0.05)


def test_triangle_points_up_and_turns_clockwise():
    upright = coverage("triangle", *geometry(16, 16, 9, 0))[0]
    rows = upright.sum(1)
    assert rows[10] < rows[18]
    torch.testing.assert_close(upright, upright.flip(1))
    top = coverage("triangle", *geometry(16, 16, 9, 15))[0][:8].sum(0)
    # Clockwise on the screen takes the upper corner to the right.
    assert top[16:].sum() > 2 * top[:16].sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_differentiable(shape):
    start = [v.double() for v in geometry(16.13, 15.71, 7.37, 9.3)]
    weight = torch.rand(IMAGE_SIZE, IMAGE_SIZE, generator=generator(3, "scenes_test"), dtype=torch.float64)
    for i in range(3 if shape == "circle" else 4):
        values = [v.clone().requires_grad_(j == i) for j, v in enumerate(start)]
        (gradient,) = torch.autograd.grad((coverage(shape, *values) * weight).sum(), values[i])
        moved = [[v + sign * 1e-6 * (j == i) for j, v in enumerate(start)] for sign in (1, -1)]
        high, low = ((coverage(shape, *m) * weight).sum() for m in moved)
        assert gradient.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-3, abs=1e-4)


def test_render_paints_the_palette():
    scenes = sample_scenes(64, generator(4, "scenes_test"))
    images = render(scenes)
    assert images.shape == (64, 3, IMAGE_SIZE, IMAGE_SIZE)
    for i in range(64):
        x, y = (int(scenes.continuous[name][i]) for name in ("x", "y"))
        colour = list(COLOURS.values())[scenes.discrete["colour"][i]]
        background = list(BACKGROUNDS.values())[scenes.discrete["background"][i]]
        torch.testing.assert_close(images[i, :, y, x], torch.tensor(colour) / 127.5 - 1)
        corner = images[i, :, 0, 31 if scenes.discrete["side"][i] == 0 else 0]
        torch.testing.assert_close(corner, torch.tensor(background) / 127.5 - 1)


def test_render_keeps_the_order_of_mixed_shapes():
    scenes = sample_scenes(12, generator(5, "scenes_test"))
    images = render(scenes)
    for i in range(12):
        torch.testing.assert_close(images[i : i + 1], render(scenes[i : i + 1]))


def test_indexing_selects_scenes():
    scenes = sample_scenes(5, generator(6, "scenes_test"))
    part = scenes[torch.tensor([3, 1])]
    assert isinstance(part, Scenes) and len(part) == 2
    assert part.continuous["x"].tolist() == [scenes.continuous["x"][3].item(), scenes.continuous["x"][1].item()]


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match="shape must be one of"):
        coverage("star", *geometry(16, 16, 8, 0))
