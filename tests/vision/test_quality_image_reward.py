"""ImageReward on random weights under the release's names, against BLIP written out here."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpdmd.store.tensors import write_tensors
from dpdmd.vision.preprocessing import clip_preprocessing
from dpdmd.vision.quality.load import load_quality

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "house", "on", "hill"]
PROMPTS = ["a red dog", "a house on a hill"]
VISION, TEXT, LAYERS = 128, 64, 2  # widths; heads are 64 wide


def _shapes():
    """{name: shape} as in the released ImageReward.pt, in small: 32 x 32 pixels, patches of 16."""
    v, t = "blip.visual_encoder", "blip.text_encoder"
    shapes = {f"{v}.cls_token": (1, 1, VISION), f"{v}.pos_embed": (1, 5, VISION)}
    shapes |= {f"{v}.patch_embed.proj.weight": (VISION, 3, 16, 16), f"{v}.patch_embed.proj.bias": (VISION,)}

    def linear(name, before, after):
        return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    for i in range(LAYERS):
        b = f"{v}.blocks.{i}"
        shapes |= norm(f"{b}.norm1", VISION) | linear(f"{b}.attn.qkv", VISION, 3 * VISION)
        shapes |= linear(f"{b}.attn.proj", VISION, VISION) | norm(f"{b}.norm2", VISION)
        shapes |= linear(f"{b}.mlp.fc1", VISION, 96) | linear(f"{b}.mlp.fc2", 96, VISION)
        b = f"{t}.encoder.layer.{i}"
        for kind, width in (("attention", TEXT), ("crossattention", VISION)):
            shapes |= linear(f"{b}.{kind}.self.query", TEXT, TEXT) | linear(f"{b}.{kind}.self.key", width, TEXT)
            shapes |= linear(f"{b}.{kind}.self.value", width, TEXT) | linear(f"{b}.{kind}.output.dense", TEXT, TEXT)
            shapes |= norm(f"{b}.{kind}.output.LayerNorm", TEXT)
        shapes |= linear(f"{b}.intermediate.dense", TEXT, 80) | linear(f"{b}.output.dense", 80, TEXT)
        shapes |= norm(f"{b}.output.LayerNorm", TEXT)
    shapes |= norm(f"{v}.norm", VISION) | norm(f"{t}.embeddings.LayerNorm", TEXT)
    shapes |= {f"{t}.embeddings.word_embeddings.weight": (len(WORDS), TEXT)}
    shapes |= {f"{t}.embeddings.position_embeddings.weight": (40, TEXT)}
    shapes |= linear("blip.vision_proj", VISION, 8) | linear("blip.text_proj", TEXT, 8)
    for number, before, after in ((0, TEXT, 32), (2, 32, 16), (4, 16, 8), (6, 8, 4), (7, 4, 1)):
        shapes |= linear(f"mlp.layers.{number}", before, after)
    return shapes


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder of weights and vocabulary, and the weights."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in _shapes().items():
        scale = 0.3 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
        is_gain = len(shape) == 1 and name.endswith("weight")
        tensors[name] = scale * torch.randn(shape, generator=rng) + is_gain
    folder = tmp_path_factory.mktemp("image_reward")
    position_ids = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    write_tensors(folder / "ImageReward.safetensors", tensors | position_ids)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder, {name: tensor.double() for name, tensor in tensors.items()}


def _attend(q, k, v, mask=None):
    """Softmax attention of heads 64 wide; tensors (L, D), mask (keys,)."""
    out = []
    for head in range(q.shape[1] // 64):
        part = slice(64 * head, 64 * head + 64)
        scores = q[:, part] @ k[:, part].T / 8
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out.append(scores.softmax(dim=1) @ v[:, part])
    return torch.cat(out, dim=1)


def _reward(w, pixels, prompt):
    """The score of one preprocessed image (3, 32, 32) and one prompt, in fp64."""

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    v, t = "blip.visual_encoder", "blip.text_encoder"
    patches = pixels.double().reshape(3, 2, 16, 2, 16).permute(1, 3, 0, 2, 4).reshape(4, -1)
    x = patches @ w[f"{v}.patch_embed.proj.weight"].reshape(VISION, -1).T + w[f"{v}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{v}.cls_token"][0], x]) + w[f"{v}.pos_embed"][0]
    for i in range(LAYERS):
        b = f"{v}.blocks.{i}"
        x = x + linear(f"{b}.attn.proj", _attend(*linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x, 1e-6)).chunk(3, 1)))
        x = x + linear(f"{b}.mlp.fc2", F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x, 1e-6))))
    image = norm(f"{v}.norm", x, 1e-6)

    ids = [WORDS.index(word) for word in ("[CLS]", *prompt.split(), "[SEP]")]
    mask = torch.arange(35) < len(ids)
    ids = torch.tensor(ids + [0] * (35 - len(ids)))
    h = w[f"{t}.embeddings.word_embeddings.weight"][ids] + w[f"{t}.embeddings.position_embeddings.weight"][:35]
    h = norm(f"{t}.embeddings.LayerNorm", h, 1e-12)
    for i in range(LAYERS):
        b = f"{t}.encoder.layer.{i}"
        for kind, source in (("attention", None), ("crossattention", image)):
            source = h if source is None else source
            name = f"{b}.{kind}"
            q, k, value = linear(f"{name}.self.query", h), linear(f"{name}.self.key", source), None
            value = linear(f"{name}.self.value", source)
            seen = _attend(q, k, value, mask if kind == "attention" else None)
            h = norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", seen) + h, 1e-12)
        hidden = F.gelu(linear(f"{b}.intermediate.dense", h))
        h = norm(f"{b}.output.LayerNorm", linear(f"{b}.output.dense", hidden) + h, 1e-12)
    score = h[0]
    for number in (0, 2, 4, 6, 7):
        score = linear(f"mlp.layers.{number}", score)
    return float((score - 0.16717362830052426) / 1.0333394966054072)


def test_a_score_is_that_of_blip_and_the_head(release):
    folder, tensors = release
    images = torch.randint(0, 256, (2, 3, 40, 32), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    expected = [_reward(tensors, p, t) for p, t in zip(clip_preprocessing(32)(images), PROMPTS, strict=True)]
    scores = load_quality(f"image_reward={folder}").score(images, PROMPTS)
    assert abs(expected[0] - expected[1]) > 0.1
    assert scores.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_score_follows_image_and_prompt_and_a_long_prompt_is_cut(release):
    scorer = load_quality(f"image_reward={release[0]}")
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    scores = [float(scorer.score(x, [p])) for x, p in ((images, "a dog"), (-images, "a dog"), (images, "a hill"))]
    assert len({round(score, 4) for score in scores}) == 3
    long = " ".join(["dog"] * 33)
    assert torch.equal(scorer.score(images, [long]), scorer.score(images, [long + " house"]))


def test_weights_that_are_not_all_there_are_refused(release, tmp_path):
    tensors = {name: tensor.float() for name, tensor in release[1].items()}
    tensors.pop("blip.text_encoder.encoder.layer.1.crossattention.self.value.bias")
    write_tensors(tmp_path / "ImageReward.safetensors", tensors)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(ValueError, match=r"does not contain ImageReward and BERT's vocab\.txt: .*value\.bias"):
        load_quality(f"image_reward={tmp_path}")
