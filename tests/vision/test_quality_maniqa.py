"""MANIQA on random weights under the release's names, against its architecture written out with stock layers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpdmd.store.tensors import write_tensors
from dpdmd.vision.quality.load import load_quality
from dpdmd.vision.quality.maniqa import crops

GRID, PATCH, WIDTH, DIM = 8, 2, 64, 16  # 16 x 16 pixels; the release has 28, 8, 768, 768


def _shapes():
    shapes = {"vit.cls_token": (1, 1, WIDTH), "vit.pos_embed": (1, GRID**2 + 1, WIDTH)}

    def layer(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes |= layer("vit.patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    for i in range(12):
        b = f"vit.blocks.{i}"
        shapes |= layer(f"{b}.norm1", WIDTH) | layer(f"{b}.attn.qkv", 3 * WIDTH, WIDTH) | layer(f"{b}.norm2", WIDTH)
        shapes |= layer(f"{b}.attn.proj", WIDTH, WIDTH) | layer(f"{b}.mlp.fc1", 80, WIDTH)
        shapes |= layer(f"{b}.mlp.fc2", WIDTH, 80)
    shapes |= layer("vit.norm", WIDTH) | layer("vit.head", 10, WIDTH)
    for s, before, dim in ((1, 4 * WIDTH, DIM), (2, DIM, DIM // 2)):
        shapes |= layer(f"conv{s}", dim, before, 1, 1) | layer(f"swintransformer{s}.downsample", dim, dim, 3, 3)
        for i in range(2):
            for letter in "qkv":
                shapes |= layer(f"tablock{s}.{i}.c_{letter}", GRID**2, GRID**2)
            shapes |= layer(f"swintransformer{s}.layers.{i}.conv", dim, dim, 3, 3)
            for j in range(2):
                b = f"swintransformer{s}.layers.{i}.blocks.{j}"
                shapes |= layer(f"{b}.norm1", dim) | layer(f"{b}.norm2", dim) | layer(f"{b}.attn.qkv", 3 * dim, dim)
                shapes |= layer(f"{b}.attn.proj", dim, dim) | {f"{b}.attn.relative_position_bias_table": (49, 4)}
                shapes |= layer(f"{b}.mlp.fc1", 24, dim) | layer(f"{b}.mlp.fc2", dim, 24)
    for name in ("fc_score", "fc_weight"):
        shapes |= layer(f"{name}.0", DIM // 2, DIM // 2) | layer(f"{name}.3", 1, DIM // 2)
    return shapes


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    rng, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in _shapes().items():
        scale = 0.3 if len(shape) == 1 else (1.5 / np.prod(shape[1:])) ** 0.5
        is_gain = len(shape) == 1 and name.endswith("weight")
        tensors[name] = scale * torch.randn(shape, generator=rng) + is_gain
    tensors["fc_score.3.bias"] += 2  # a rectifier follows: it must not hide everything
    buffers = {"swintransformer1.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    folder = tmp_path_factory.mktemp("maniqa")
    write_tensors(folder / "maniqa.safetensors", tensors | buffers)
    return folder, {name: tensor.double() for name, tensor in tensors.items()}


def _blocks(w, pixels):
    """Outputs of the transformer's blocks 6 to 9 without the class token, by torch's own layer."""
    x = F.conv2d(pixels, w["vit.patch_embed.proj.weight"], w["vit.patch_embed.proj.bias"], PATCH).flatten(2)
    x = torch.cat([w["vit.cls_token"].expand(len(x), -1, -1), x.transpose(1, 2)], dim=1) + w["vit.pos_embed"]
    seen = []
    for i in range(10):
        layer = nn.TransformerEncoderLayer(
            WIDTH, 1, 80, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
        )
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
                 "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}  # fmt: skip
        kinds = ("weight", "bias")
        layer.load_state_dict({a + k: w[f"vit.blocks.{i}.{b}{k}"] for a, b in names.items() for k in kinds})
        x = layer(x)
        seen.append(x[:, 1:])
    return torch.cat(seen[6:], dim=2)


def _visible(a, b, shift):
    """Whether two places, (row, column) on the grid, are in one window of the shifted grid and near on the image."""

    def window(place):
        return [(side - shift) % GRID // 4 for side in place]

    # A shifted window at the border holds both ends of the image: these do not see each other.
    return window(a) == window(b) and all(abs(p - q) < 4 for p, q in zip(a, b, strict=True))


def _attention(w, name, x, shift):
    """Attention over all 64 places at once, with what is not visible masked; x (B, 64, C)."""
    places = [(row, column) for row in range(GRID) for column in range(GRID)]
    visible = torch.tensor([[_visible(a, b, shift) for b in places] for a in places])
    table = w[f"{name}.relative_position_bias_table"]
    bias = torch.zeros(4, 64, 64, dtype=torch.float64)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            if visible[i, j]:
                bias[:, i, j] = table[(a[0] - b[0] + 3) * 7 + a[1] - b[1] + 3]
    bias = bias.masked_fill(~visible, float("-inf"))
    qkv = F.linear(x, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return F.linear(out.transpose(1, 2).flatten(2), w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])


@torch.no_grad()
def _score(w, pixels):
    """The scores of images (B, 3, 16, 16), in fp64."""

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x = _blocks(w, pixels).transpose(1, 2)
    for s in (1, 2):
        for i in range(2):
            q, k, v = (linear(f"tablock{s}.{i}.c_{letter}", x) for letter in "qkv")
            out = torch.softmax(q @ k.mT / GRID, dim=2) @ v
            x = x + out.mT.reshape(x.shape)
        x = F.conv2d(x.unflatten(2, (GRID, GRID)), w[f"conv{s}.weight"], w[f"conv{s}.bias"]).flatten(2).mT
        for i in range(2):
            y = x
            for j in range(2):
                b = f"swintransformer{s}.layers.{i}.blocks.{j}"
                y = y + _attention(w, f"{b}.attn", norm(f"{b}.norm1", y), 2 * j)
                y = y + linear(f"{b}.mlp.fc2", F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", y))))
            name = f"swintransformer{s}.layers.{i}.conv"
            y = F.conv2d(y.mT.unflatten(2, (GRID, GRID)), w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
            x = x + 0.8 * F.relu(y).flatten(2).mT
        x = x.mT
    x = x.mT
    score = F.relu(linear("fc_score.3", F.relu(linear("fc_score.0", x))))
    weight = torch.sigmoid(linear("fc_weight.3", F.relu(linear("fc_weight.0", x))))
    return ((score * weight).sum(1) / weight.sum(1))[:, 0]


def test_a_score_is_the_mean_over_crops_of_the_architectures(release):
    folder, w = release
    images = torch.randint(0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    expected = [float(_score(w, crops(image, 16).double()).mean()) for image in images]
    scores = load_quality(f"maniqa={folder}").score(images, ["", ""])
    assert abs(expected[0] - expected[1]) > 1e-3 and min(expected) > 0
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_crops_are_of_the_same_places_and_cover_the_image():
    image = torch.arange(3 * 20 * 24.0).reshape(3, 20, 24)
    first = crops(image, 16)
    assert first.shape == (20, 3, 16, 16) and torch.equal(first, crops(image, 16))
    assert len({float(crop[0, 0, 0]) for crop in first}) > 10
    assert (crops(image[:, :16, :16], 16) == image[None, :, :16, :16]).all()
    with pytest.raises(ValueError, match="needs images of at least 16 x 16 pixels, got 20 x 10"):
        crops(image[:, :, :10], 16)


def test_weights_that_are_not_all_there_are_refused(release, tmp_path):
    tensors = {name: tensor.float() for name, tensor in release[1].items()}
    tensors.pop("swintransformer2.layers.1.blocks.0.attn.proj.bias")
    write_tensors(tmp_path / "maniqa.safetensors", tensors)
    with pytest.raises(ValueError, match=r"does not contain MANIQA: .*proj\.bias"):
        load_quality(f"maniqa={tmp_path}")
