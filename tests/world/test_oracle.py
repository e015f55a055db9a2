import pytest
import torch
from torch.nn import functional as F

from dpdmd.method.randomness import generator
from dpdmd.world.oracle import VALID_DISTORTION, VALID_RESIDUAL, read_scenes
from dpdmd.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    CONTINUOUS_FACTORS,
    DISCRETE_FACTORS,
    IMAGE_SIZE,
    SHAPES,
    coverage,
    render,
    sample_scenes,
)

NUM = 768


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(NUM, generator(0, "oracle_test"))


@pytest.fixture(scope="module")
def images(scenes):
    return render(scenes)


def noise(std):
    return std * torch.randn(NUM, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator(0, "oracle_test_noise"))


def blur(images, sigma):
    reach = int(3 * sigma + 1)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    taps = taps / taps.sum()
    out = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    out = F.conv2d(F.conv2d(out, taps[None, None, None]), taps[None, None, :, None])
    return out.reshape(images.shape)


def colours_of(scenes):
    return (torch.tensor(list(COLOURS.values())) / 127.5 - 1)[scenes.discrete["colour"]][:, :, None, None]


def backdrops_of(scenes):
    table = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    return table[scenes.discrete["background"]][:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)


def masks_of(scenes):
    masks = torch.empty(len(scenes), 1, IMAGE_SIZE, IMAGE_SIZE)
    for i, shape in enumerate(scenes.discrete["shape"].tolist()):
        masks[i] = coverage(SHAPES[shape], *(scenes.continuous[name][i : i + 1] for name in CONTINUOUS_FACTORS))
    return masks


def accuracy(reading, scenes):
    return {f: (reading.scenes.discrete[f] == scenes.discrete[f]).float().mean().item() for f in DISCRETE_FACTORS}


def mean_error(reading, scenes, factor):
    error = (reading.scenes.continuous[factor] - scenes.continuous[factor]).abs()
    return (error[scenes.discrete["shape"] != 0] if factor == "rotation" else error).mean().item()


def test_rendered_scenes_are_read_back(images, scenes):
    reading = read_scenes(images)
    assert min(accuracy(reading, scenes).values()) >= 0.999
    assert reading.valid.all()
    # The fit stops within a hundredth of a pixel of the renderer's own parameters, save a few stalled ones.
    assert max(mean_error(reading, scenes, factor) for factor in ("x", "y", "radius")) < 0.005
    assert mean_error(reading, scenes, "rotation") < 0.02
    assert reading.residual.mean() < 1e-3


# Bounds are the measured values of the docstring of read_scenes plus a third.
@pytest.mark.parametrize(
    ("degrade", "pixels", "degrees"),
    [
        (lambda images: images + noise(0.1), 0.015, 0.15),
        (lambda images: images + noise(0.2), 0.03, 0.3),
        (lambda images: images + noise(0.4), 0.07, 0.6),
        (lambda images: blur(images, 1.0), 0.11, 2.0),
    ],
    ids=["noise .1", "noise .2", "noise .4", "blur 1"],
)
def test_degraded_scenes_are_read_right(images, scenes, degrade, pixels, degrees):
    reading = read_scenes(degrade(images))
    assert min(accuracy(reading, scenes).values()) >= 0.998
    assert max(mean_error(reading, scenes, factor) for factor in ("x", "y", "radius")) < pixels
    assert mean_error(reading, scenes, "rotation") < degrees


def test_residual_is_the_noise_that_was_added(images):
    # Four of 3072 degrees of freedom go to the fit.
    assert read_scenes(images + noise(0.1)).residual.mean().item() == pytest.approx(0.1, rel=0.01)


def test_slightly_degraded_scenes_are_valid(images):
    assert read_scenes(images + noise(0.08)).valid.float().mean() >= 0.99
    assert read_scenes(blur(images, 0.5) + noise(0.03)).valid.float().mean() >= 0.99
    assert read_scenes(blur(images, 1.0)).valid.float().mean() >= 0.9


def test_images_that_are_no_scenes_are_invalid(images, scenes):
    other = sample_scenes(NUM, generator(1, "oracle_test"))
    apart = (scenes.continuous["x"] - other.continuous["x"]).abs() > 6
    ramp = torch.arange(IMAGE_SIZE) + 0.5
    x, y, radius = (scenes.continuous[name][:, None, None] for name in ("x", "y", "radius"))
    bump = torch.exp(-((ramp - x).square() + (ramp[:, None] - y).square()) / (2 * (0.7 * radius).square()))[:, None]
    two_shapes = images + masks_of(other) * (colours_of(scenes) - images)
    bad = {
        "blend of two scenes": (images + render(other)) / 2,
        "blur": blur(images, 2.5),
        "blob": backdrops_of(scenes) + bump * (colours_of(scenes) - backdrops_of(scenes)),
        "empty": backdrops_of(scenes),
        "empty and noise": backdrops_of(scenes) + noise(0.05),
        "two shapes of one colour": two_shapes[apart],
        "over-saturated": images * 1.5,
        "over-saturated, clipped": (images * 1.5).clamp(-1, 1),
        "strong noise": images + noise(0.2),
        "noise alone": noise(0.5),
    }
    rates = {name: read_scenes(value[:256]).valid.float().mean().item() for name, value in bad.items()}
    # At most .4 % of 2048 pass; among blends the rare pair of two nearly equal scenes.
    assert max(rates.values()) <= 0.02, rates


def test_over_saturation_raises_the_residual_and_keeps_the_factors(images, scenes):
    reading = read_scenes(images * 1.5)
    assert reading.residual.median() > 0.2
    assert min(accuracy(reading, scenes).values()) >= 0.99


def test_reading_does_not_depend_on_the_batch(images):
    whole = read_scenes(images[:300])
    single = read_scenes(images[290:300])
    for name in CONTINUOUS_FACTORS:
        torch.testing.assert_close(
            whole.scenes.continuous[name][290:], single.scenes.continuous[name], atol=1e-3, rtol=0
        )
    for name in DISCRETE_FACTORS:
        assert torch.equal(whole.scenes.discrete[name][290:], single.scenes.discrete[name])


def test_valid_requires_both_thresholds(images):
    reading = read_scenes(images + noise(0.1))
    assert 0 < (~reading.valid).sum() < NUM
    assert torch.equal(reading.valid, (reading.residual <= VALID_RESIDUAL) & (reading.distortion <= VALID_DISTORTION))


def test_no_images_give_an_empty_reading():
    assert len(read_scenes(torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE))) == 0


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"must be \(B, 3, 32, 32\)"):
        read_scenes(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="diverged"):
        read_scenes(torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), float("nan")))
