"""Scores computed with CLIP-type models: CLIPScore, PickScore, HPSv2.1 and CLIP-IQA."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from dpdmd.models.checked import load_checked
from dpdmd.models.tokenizer import load_tokenizer
from dpdmd.store.errors import library_errors
from dpdmd.store.tensors import read_tensors
from dpdmd.vision.preprocessing import clip_preprocessing
from dpdmd.vision.quality.load import weights_file
from dpdmd.vision.quality.open_clip import clip_from_open_clip, is_open_clip
from dpdmd.vision.weights import Weights

MAX_TOKENS = 77
ANTONYMS = ("Good photo.", "Bad photo.")
Score = Callable[[Tensor, list[str]], Tensor]


def clip_score(weights: Weights, device: str) -> Score:
    """CLIPScore, how well an image matches its prompt: 100 max(cos(image, prompt), 0).

    Source: arXiv 2104.08718, in percent as in torchmetrics; differs: the paper's factor is 2.5 instead of 100, and its
    model is ViT-B/32.
    """
    clip = load_clip(weights, device)
    return lambda images, prompts: 100 * clip.cosine(images, prompts).clamp(min=0)


def pick_score(weights: Weights, device: str) -> Score:
    """PickScore, a model of human preferences: exp(logit_scale) cos(image, prompt), about 18 to 24.

    Source: arXiv 2305.01569.
    """
    clip = load_clip(weights, device)
    return lambda images, prompts: clip.scale * clip.cosine(images, prompts)


def hps_v21(weights: Weights, device: str) -> Score:
    """HPSv2.1, a model of human preferences: cos(image, prompt), about 0.2 to 0.35.

    Source: arXiv 2306.09341, with the weights of HPSv2.1.
    """
    return load_clip(weights, device).cosine


def clip_iqa(weights: Weights, device: str) -> Score:
    """CLIP-IQA, a quality score in [0, 1] that ignores the prompt: the probability of "Good photo." over "Bad photo.".

        softmax(exp(logit_scale) cos(image, text))_good

    Source: arXiv 2207.12396; differs: we use any CLIP model with its positional embedding, whereas the paper uses a
    ResNet-50 without it. Our scores can therefore be compared only with each other.
    """
    clip = load_clip(weights, device)
    texts = clip.texts(list(ANTONYMS))

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return (clip.scale * clip.images(images) @ texts.T).softmax(dim=1)[:, 0].cpu()

    return score


class Clip:
    """A CLIP model in fp32 with its tokenizer; its embeddings have unit length."""

    def __init__(self, model: CLIPModel, tokenizer: Any, device: str):
        stock = cast("Any", model)  # transformers declares neither its `to` nor the parts of its configuration
        self.model, self.tokenizer, self.device = stock.to(device).eval().requires_grad_(False), tokenizer, device
        self.scale = float(model.logit_scale.exp())
        self.preprocess = clip_preprocessing(self.model.config.vision_config.image_size)

    def images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W) in [-1, 1]."""
        pixels = self.preprocess(images.to(self.device))
        return _unit(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))

    def texts(self, texts: list[str]) -> Tensor:
        """Embeddings (B, D) of texts, which are truncated to 77 tokens."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return _unit(self.model.text_projection(pooled))

    @torch.no_grad()
    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine (B,) between each image and its prompt, on the CPU."""
        unique = list(dict.fromkeys(prompts))  # most images of a batch share a prompt
        texts = self.texts(unique)[[unique.index(prompt) for prompt in prompts]]
        return (self.images(images) * texts).sum(dim=1).cpu()

    @property
    def _max_tokens(self) -> int:
        return min(MAX_TOKENS, self.model.config.text_config.max_position_embeddings)


def load_clip(weights: Weights, device: str = "cpu") -> Clip:
    """Load the CLIP model of a folder that also contains CLIP's tokenizer.

    The model is either saved by transformers, or a single .safetensors file with open_clip's names.
    Raises ValueError if weights or tokenizer are missing or do not fit.
    """
    with library_errors(f"{weights.name} does not contain a CLIP model with its tokenizer"):
        tokenizer = load_tokenizer(CLIPTokenizer, str(weights.folder), "")
        if (weights.folder / "config.json").exists():
            return Clip(load_checked(CLIPModel, weights.folder, "CLIP weights"), tokenizer, device)
    tensors = read_tensors(weights_file(weights.folder))
    if not is_open_clip(tensors):
        raise ValueError(f"{weights.name} has no config.json, and its weights do not have the names of open_clip")
    with library_errors(f"{weights.name}: the weights are not those of a supported open_clip model"):
        model = clip_from_open_clip(tensors)
    return Clip(model, tokenizer, device)


def _unit(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=1, keepdim=True)
