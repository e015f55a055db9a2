"""CLIPScore, PickScore, HPSv2.1 and CLIP-IQA on tiny random CLIP models."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dpdmd.evaluate.run import evaluate_folder
from dpdmd.store.tensors import write_tensors
from dpdmd.vision.quality import load
from dpdmd.vision.quality.load import load_quality
from dpdmd.vision.weights import find_weights

PROMPTS = ["a red dog", "a red dog", "the blue house on a hill"]
SIZE = 28
LETTERS = "abcdefghijklmnopqrstuvwxyz."


def _tokenizer():
    symbols = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {symbol: i for i, symbol in enumerate(symbols)}, [("r", "e"), ("re", "d</w>")], model_max_length=77
    )


def _pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)


def _images():
    return torch.from_numpy(_pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny model as transformers saves it: its folder and itself."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = _tokenizer()
    text = sizes | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "hidden_act": "quick_gelu"}
    vision = sizes | {"image_size": SIZE, "patch_size": 7, "hidden_act": "quick_gelu"}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def _official_logits(model, texts):
    """exp(logit_scale) cos of each image with each text, by transformers' own processor and model."""
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}), _tokenizer()
    )
    pictures = [Image.fromarray(pixels) for pixels in _pixels()]
    inputs = processor(text=texts, images=pictures, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_image


def test_clip_score_and_pick_score_are_those_of_the_official_processor_and_model(clip):
    folder, model = clip
    expected = _official_logits(model, PROMPTS).diagonal()
    torch.testing.assert_close(load_quality(f"pick_score={folder}").score(_images(), PROMPTS), expected)
    cosine = expected / model.logit_scale.exp()
    assert (cosine < 0).any() and (cosine > 0).any()  # or the clamp would not be seen
    torch.testing.assert_close(
        load_quality(f"clip_score={folder}").score(_images(), PROMPTS), 100 * cosine.clamp(min=0)
    )


def test_clip_iqa_is_the_probability_of_the_good_photo_and_sees_no_prompt(clip):
    folder, model = clip
    expected = _official_logits(model, ["Good photo.", "Bad photo."]).softmax(dim=1)[:, 0]
    scorer = load_quality(f"clip_iqa={folder}")
    torch.testing.assert_close(scorer.score(_images(), PROMPTS), expected)
    assert torch.equal(scorer.score(_images(), PROMPTS), scorer.score(_images(), ["x"] * 3))


def test_weights_are_looked_for_once(clip, tmp_path, monkeypatch):
    for number, pixels in enumerate(_pixels()):
        (tmp_path / "images" / PROMPTS[0]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / PROMPTS[0] / f"{number}.png")
    looked_for = []
    monkeypatch.setattr(load, "find_weights", lambda name: looked_for.append(name) or find_weights(name))
    metrics = evaluate_folder(tmp_path / "images", quality=[f"pick_score={clip[0]}"])
    assert "pick_score" in metrics and looked_for == [str(clip[0])]


def test_a_long_prompt_is_cut_and_a_score_does_not_depend_on_the_batch(clip):
    scorer = load_quality(f"pick_score={clip[0]}")
    together = scorer.score(_images(), PROMPTS)
    alone = [scorer.score(_images()[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), together)
    assert scorer.score(_images()[:1], ["a red dog " * 40]).isfinite().all()


class Block(nn.Module):
    """A layer of open_clip, with its names."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, 16) for _ in range(2))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.proj = nn.Parameter(torch.randn(width, dim))
        self.conv1 = nn.Conv2d(3, width, 7, 7, bias=False)
        self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(width), nn.LayerNorm(width), Tower(width)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """ViT-H-14's architecture in small, written down from open_clip's description and under its names."""

    def __init__(self, vocab_size, width=64, dim=16, length=77):
        super().__init__()
        self.visual = Vision(80, dim)
        self.transformer, self.ln_final = Tower(width), nn.LayerNorm(width)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.text_projection = nn.Parameter(torch.randn(width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("attn_mask", torch.full((length, length), float("-inf")).triu(1))

    def forward(self, pixels, tokens):
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, self.attn_mask)
        # The end of a text has the largest number of all tokens.
        texts = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection
        return nn.functional.cosine_similarity(self.visual(pixels), texts)


@pytest.fixture
def open_clip(tmp_path):
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    model = OpenClip(len(tokenizer)).eval()
    for parameter in model.parameters():  # biases and norms that are not what they start from
        nn.init.normal_(parameter, std=0.3)
    write_tensors(tmp_path / "hps.safetensors", model.state_dict())
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model


def test_hps_runs_open_clip_weights(open_clip):
    folder, model = open_clip
    # open_clip pads with zeros after the end.
    rows = [_tokenizer()(prompt).input_ids for prompt in PROMPTS]
    tokens = torch.tensor([row + [0] * (77 - len(row)) for row in rows])
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    pixels = processor([Image.fromarray(pixels) for pixels in _pixels()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixels, tokens)
    scorer = load_quality(f"hps_v21={folder}")
    torch.testing.assert_close(scorer.score(_images(), PROMPTS), expected, rtol=1e-5, atol=1e-6)
    assert scorer.weights.revision is None and len(scorer.weights.sha256) == 64


def test_weights_that_do_not_fit_are_refused(open_clip, tmp_path):
    folder, model = open_clip
    tensors = model.state_dict()
    tensors.pop("visual.transformer.resblocks.1.attn.in_proj_bias")
    write_tensors(folder / "hps.safetensors", tensors)
    with pytest.raises(ValueError, match=r"not those of a supported open_clip model: .*Missing key"):
        load_quality(f"hps_v21={folder}")
    write_tensors(folder / "hps.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no config\.json, and its weights do not have the names of open_clip"):
        load_quality(f"hps_v21={folder}")


def test_names_without_a_scorer_or_without_weights_are_reported_first():
    with pytest.raises(ValueError, match="there is no quality score 'clipscore'; choose from clip_score"):
        load_quality("clipscore")
    with pytest.raises(ValueError, match="hps_v21 needs a folder with its weights, hps_v21=FOLDER"):
        load_quality("hps_v21")
    with pytest.raises(ValueError, match="'nowhere' is neither a folder nor a hub id that can be downloaded"):
        load_quality("pick_score=nowhere")
