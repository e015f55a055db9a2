"""The LPIPS-type distance and its backbones; numpy, stock transformers and the built-in world are the judges."""

import colorsys
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dpdmd.method.randomness import generator
from dpdmd.store.tensors import write_tensors
from dpdmd.vision.perceptual import PerceptualDistance, lpips_shapes, perceptual_distance
from dpdmd.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    DISCRETE_FACTORS,
    IMAGE_SIZE,
    Scenes,
    coverage,
    render,
    sample_scenes,
)

TRUNKS = {"vgg": (64, 3, 3, 3), "alex": (64, 3, 11, 11)}


def maps(values):
    """One image's map (1, channels, places) from a list of places."""
    return torch.tensor(values, dtype=torch.float32).T[None]


def test_the_distance_is_the_formula_on_maps_by_hand():
    # Of length 1: (.6, .8) against (.8, .6), and (1, 0) against (0, 1).
    first, second = [maps([[3, 4], [1, 0]]), maps([[5, 12]])], [maps([[8, 6], [0, 2]]), maps([[5, 12]])]
    assert perceptual_distance(first, second).tolist() == pytest.approx([((0.04 + 0.04) + (1 + 1)) / 2])
    weights = [torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0])]
    assert perceptual_distance(first, second, weights).tolist() == pytest.approx([((0.04 + 0.02) + (1 + 0.5)) / 2])
    second[1] = maps([[-5, -12]])  # opposite: the largest that a layer can add
    assert perceptual_distance(first, second).tolist() == pytest.approx([1.04 + 4])


def test_the_distance_sees_directions_and_not_lengths(randn):
    first, second, lengths = randn(0, 2, 5, 3, 4), randn(1, 2, 5, 3, 4), randn(2, 2, 1, 3, 4).abs() + 0.1
    assert_close(perceptual_distance([first * lengths], [second]), perceptual_distance([first], [second]))
    assert perceptual_distance([first], [first * lengths]).abs().max() < 1e-6
    assert_close(perceptual_distance([first], [second]), perceptual_distance([second], [first]))


def test_a_place_where_nothing_is_seen_has_a_finite_gradient():
    first = torch.zeros(1, 3, 2, requires_grad=True)
    distance = perceptual_distance([first], [torch.ones(1, 3, 2)])
    distance.sum().backward()
    assert distance.item() == pytest.approx(1) and first.grad.isfinite().all()


def convolved(x, weight, bias, *, stride, padding):
    """A convolution in numpy: x (C, H, W), weight (D, C, k, k)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,dcij->dhw", windows, weight, optimize=True) + bias[:, None, None]


def pooled(x, size):
    """The largest of size x size pixels, every second one."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2].max(axis=(-1, -2))


def lpips_maps(tensors, trunk, image):
    """What the LPIPS release sees of an image (3, H, W): torchvision's trunks, a map after each of five rectifiers."""
    x = (image - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
    if trunk == "vgg":
        # (layer, whether its rectified map is kept, whether a pool comes before it)
        convolutions = [(0, 0, 0), (2, 1, 0), (5, 0, 1), (7, 1, 0), (10, 0, 1), (12, 0, 0), (14, 1, 0), (17, 0, 1)]
        convolutions += [(19, 0, 0), (21, 1, 0), (24, 0, 1), (26, 0, 0), (28, 1, 0)]
        size, first = 2, {"stride": 1, "padding": 1}
    else:
        convolutions = [(0, 1, 0), (3, 1, 1), (6, 1, 1), (8, 1, 0), (10, 1, 0)]
        size, first = 3, {"stride": 4, "padding": 2}
    kept = []
    for layer, keep, pool in convolutions:
        x = pooled(x, size) if pool else x
        weight, bias = tensors[f"features.{layer}.weight"], tensors[f"features.{layer}.bias"]
        options = first if layer == 0 else {"stride": 1, "padding": weight.shape[-1] // 2}
        x = np.maximum(convolved(x, weight, bias, **options), 0)
        if keep:
            kept.append(x)
    return kept


def lpips_distance(tensors, trunk, first, second):
    total = 0.0
    for k, (a, b) in enumerate(zip(*(lpips_maps(tensors, trunk, image) for image in (first, second)), strict=True)):
        a, b = (x / (np.sqrt((x**2).sum(axis=0, keepdims=True)) + 1e-10) for x in (a, b))
        total += ((a - b) ** 2 * tensors[f"lin{k}.model.1.weight"].reshape(-1, 1, 1)).sum(axis=0).mean()
    return total


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    """lpips_file(trunk, **changed): random weights under the names of torchvision and of the LPIPS release."""

    def write(trunk, **changed):
        rng = torch.Generator().manual_seed(3)
        tensors = {}
        for name, shape in lpips_shapes(TRUNKS[trunk]).items():
            scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 and name.startswith("features") else 0.1
            tensors[name] = scale * torch.randn(shape, generator=rng)
            if name.startswith("lin"):
                tensors[name] = tensors[name].abs()
        path = tmp_path_factory.mktemp(trunk) / "lpips.safetensors"
        write_tensors(path, {name: t for name, t in (tensors | changed).items() if t is not None})
        return str(path), {name: tensor.numpy() for name, tensor in tensors.items()}

    return write


@pytest.mark.parametrize("trunk", TRUNKS)
def test_lpips_weights_give_the_distance_of_the_lpips_release(trunk, lpips_file, randn):
    path, tensors = lpips_file(trunk)
    size = {"vgg": (16, 20), "alex": (32, 40)}[trunk]
    first, second = randn(0, 2, 3, *size).clamp(-1, 1), randn(1, 2, 3, *size).clamp(-1, 1)
    expected = [lpips_distance(tensors, trunk, a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    ours = PerceptualDistance(path, size)(first, second)
    assert min(expected) > 1e-2
    assert ours.tolist() == pytest.approx(expected, rel=1e-4)


def test_lpips_names_are_those_of_torchvision_and_of_the_release():
    vgg, alex = (lpips_shapes(TRUNKS[name]) for name in ("vgg", "alex"))
    numbers = {name.split(".")[1] for name in vgg if name.startswith("features")}
    assert numbers == set(map(str, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)))
    assert {name.split(".")[1] for name in alex if name.startswith("features")} == set(map(str, (0, 3, 6, 8, 10)))
    widths = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
    for shapes, channels in ((vgg, widths["vgg"]), (alex, widths["alex"])):
        assert [shapes[f"lin{k}.model.1.weight"] for k in range(5)] == [(1, c, 1, 1) for c in channels]


def test_files_that_hold_no_lpips_weights_are_refused_before_they_are_read(lpips_file, tmp_path):
    size = (32, 32)
    for name in ("vgg.pth", "alex.pt", "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"is a pickle.*convert it once to a \.safetensors"):
            PerceptualDistance(str(tmp_path / name), size)
    write_tensors(tmp_path / "other.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"is not a readable safetensors file .*did you mean .*/other\.safetensors\?"):
        PerceptualDistance(str(tmp_path / "othr.safetensors"), size)
    with pytest.raises(ValueError, match=r"features\.0\.weight must be \(64, 3, 3, 3\) for VGG16 or .* got \(\)"):
        PerceptualDistance(str(tmp_path / "other.safetensors"), size)
    path, _ = lpips_file("alex", **{"lin2.model.1.weight": None})
    with pytest.raises(ValueError, match=r"1 tensors differ, the first is lin2\.model\.1\.weight missing, expected"):
        PerceptualDistance(path, size)
    path, _ = lpips_file("alex", **{"features.3.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"the first is features\.3\.bias \(5,\), expected \(192,\)"):
        PerceptualDistance(path, size)
    with pytest.raises(ValueError, match="downsamples too often for images of 24 x 32 pixels"):
        PerceptualDistance(lpips_file("alex")[0], (24, 32))


PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 34},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


def saved(network, folder):
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return network.eval()


def as_the_model_sees(images):
    """28 x 28 pixels, standardised: nothing of the picture is cut away."""
    resized = nn.functional.interpolate((images + 1) / 2, (28, 28), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(PREPROCESSOR[name])[:, None, None] for name in ("image_mean", "image_std"))
    return (resized - mean) / std


def cosine_distance(first, second):
    """mean over places of 2 - 2 cos, (B, places, C)."""
    return (2 - 2 * nn.functional.cosine_similarity(first, second, dim=-1)).mean(dim=1)


def test_a_vision_transformer_is_compared_by_four_of_its_layers_and_its_patches(tmp_path, randn):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    network = saved(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size)), tmp_path)
    first, second = randn(0, 2, 3, 40, 30).clamp(-1, 1), randn(1, 2, 3, 40, 30).clamp(-1, 1)
    with torch.no_grad():
        states = [network(as_the_model_sees(x), output_hidden_states=True).hidden_states for x in (first, second)]
    chosen = [(a[:, -16:], b[:, -16:]) for i, (a, b) in enumerate(zip(*states, strict=True)) if i in (2, 3, 4, 6)]
    expected = sum(cosine_distance(a, b) for a, b in chosen)
    assert_close(PerceptualDistance(str(tmp_path), (40, 30))(first, second), expected, atol=1e-5, rtol=1e-5)
    assert expected.min() > 1e-2


def test_a_convolutional_model_is_compared_by_its_maps(tmp_path, randn):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    network = saved(ResNetModel(config), tmp_path)
    first, second = randn(0, 2, 3, 28, 28).clamp(-1, 1), randn(1, 2, 3, 28, 28).clamp(-1, 1)
    with torch.no_grad():
        states = [network(as_the_model_sees(x), output_hidden_states=True).hidden_states[1:] for x in (first, second)]
    places = [[state.flatten(2).transpose(1, 2) for state in image] for image in states]
    expected = sum(cosine_distance(a, b) for a, b in zip(*places, strict=True))
    assert_close(PerceptualDistance(str(tmp_path), (28, 28))(first, second), expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_vision_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is neither 'scenes', nor a \.safetensors file .* nor the folder"):
        PerceptualDistance(str(tmp_path / "nowhere"), (32, 32))


def moved(scenes, *, discrete=None, **continuous):
    """The same scenes with other factors."""
    return render(Scenes(scenes.discrete | (discrete or {}), scenes.continuous | continuous))


@pytest.fixture(scope="module")
def scene_distance():
    return PerceptualDistance("scenes", (IMAGE_SIZE, IMAGE_SIZE))


@pytest.fixture(scope="module")
def scenes():
    """Scenes whose shapes are two pixels and more from every edge."""
    drawn = sample_scenes(400, generator(0, "perceptual"))
    x, y, radius = (drawn.continuous[name] for name in ("x", "y", "radius"))
    reach = 1.12 * radius + 2
    inside = (torch.minimum(x, y) > reach) & (torch.maximum(x, y) < IMAGE_SIZE - reach)
    return drawn[inside.nonzero().squeeze(1)[:64]]  # of every shape


def test_scenes_further_apart_are_further_apart(scene_distance, scenes):
    rng, base = generator(1, "perceptual"), render(scenes)

    def to(images):
        with torch.no_grad():
            return scene_distance(images, base)

    def another(factor):
        values = len(DISCRETE_FACTORS[factor])
        step = torch.randint(1, values, (len(scenes),), generator=rng)
        return {factor: (scenes.discrete[factor] + step) % values}

    near = to(moved(scenes, x=scenes.continuous["x"] + 1))
    for factor in ("background", "colour", "shape"):
        other = to(moved(scenes, discrete=another(factor)))
        assert (near < other).float().mean() > 0.9 and other.mean() > 3 * near.mean(), factor
    everything = to(render(sample_scenes(len(scenes), rng)))
    assert everything.mean() > 1.5 * to(moved(scenes, discrete=another("background"))).mean()
    assert to(base).max() == 0
    assert to(base + 0.05 * torch.randn(base.shape, generator=rng)).mean() < 0.2 * near.mean()


def test_the_distance_of_scenes_rises_with_shift_turn_size_and_brightness(scene_distance, scenes):
    base, values = render(scenes), scenes.continuous
    ways = {
        "x": [moved(scenes, x=values["x"] + step) for step in (0.25, 0.5, 1, 2)],
        "y": [moved(scenes, y=values["y"] - step) for step in (0.25, 0.5, 1, 2)],
        "radius": [moved(scenes, radius=values["radius"] + step) for step in (0.25, 0.5, 1, 2)],
        "brightness": [base + step for step in (0.05, 0.1, 0.2, 0.4)],
    }
    for name, way in ways.items():
        with torch.no_grad():
            distances = torch.stack([scene_distance(images, base) for images in way])
        assert (distances.diff(dim=0) > 0).float().mean() > 0.98, name
        # Smooth: near zero it is quadratic, so that half a step is about a quarter.
        assert 2.5 < (distances[1] / distances[0]).median() < 5.5, name


def painted(colour, ground):
    """A disc of colours (B, 3) on grounds (B, 3), both in [0, 1]."""
    disc = coverage("circle", *(torch.tensor([value]) for value in (12.0, 14.0, 7.0, 0.0)))[:, None]
    ground = ground[:, :, None, None]
    return 2 * (ground + disc * (colour[:, :, None, None] - ground)) - 1


def test_the_distance_of_scenes_rises_with_hue_and_from_every_background_to_every_other(scene_distance):
    colours, grounds = (torch.tensor(list(table.values())) / 255 for table in (COLOURS, BACKGROUNDS))
    # Every colour on every background, and every background with every colour on its way to every other background.
    colour, ground = colours.repeat_interleave(6, 0), grounds.repeat(6, 1)

    def turned(degrees):
        hues = [colorsys.rgb_to_hsv(*rgb) for rgb in colour.tolist()]
        return painted(torch.tensor([colorsys.hsv_to_rgb((h + degrees / 360) % 1, s, v) for h, s, v in hues]), ground)

    ways = {"hue": [turned(degrees) for degrees in (0, 5, 10, 20, 40, 60, 90)]}
    for shift in range(1, 6):
        other = grounds.roll(shift, 0).repeat(6, 1)
        ways[f"background {shift}"] = [painted(colour, ground + u * (other - ground)) for u in (0, 0.1, 0.3, 0.6, 1)]
    for name, (start, *way) in ways.items():
        with torch.no_grad():
            distances = torch.stack([scene_distance(images, start) for images in way])
        assert (distances.diff(dim=0) > 0).all(), name


def test_gradients_of_the_scene_distance_lead_a_shape_home_and_train_no_backbone(scene_distance, scenes):
    home = {name: scenes.continuous[name] for name in ("x", "y")}
    target = render(scenes)
    for offset in (-3.0, -1.0, 1.0, 3.0):
        place = {name: (value + offset).requires_grad_() for name, value in home.items()}
        scene_distance(moved(scenes, **place), target).sum().backward()
        for name, value in place.items():
            # Downhill is towards home.
            assert (value.grad.sign() == np.sign(offset)).float().mean() > 0.95, (name, offset)
    assert all(p.grad is None and not p.requires_grad for p in scene_distance.network.parameters())


def test_scene_features_see_nothing_but_scenes():
    with pytest.raises(ValueError, match=r'"scenes" works for the built-in world only, .* 32 x 32 pixels, got 64 x 32'):
        PerceptualDistance("scenes", (64, 32))
