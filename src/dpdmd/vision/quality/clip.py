"""Scores by CLIP-type models: CLIPScore, PickScore, HPSv2.1 and CLIP-IQA."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from dpdmd.store.tensors import read_tensors
from dpdmd.vision.preprocessing import clip_preprocessing
from dpdmd.vision.quality.load import weights_file
from dpdmd.vision.quality.open_clip import clip_from_open_clip, is_open_clip
from dpdmd.vision.weights import Weights

MAX_TOKENS = 77
ANTONYMS = ("Good photo.", "Bad photo.")
Score = Callable[[Tensor, list[str]], Tensor]


def clip_score(weights: Weights, device: str) -> Score:
    """100 max(cos(image, prompt), 0). Source: arXiv 2104.08718, in percent as torchmetrics has it; differs: the paper's
    own weight is 2.5 instead of 100, and its model ViT-B/32."""
    clip = load_clip(weights, device)
    return lambda images, prompts: 100 * clip.cosine(images, prompts).clamp(min=0)


def pick_score(weights: Weights, device: str) -> Score:
    """exp(logit_scale) cos(image, prompt), about 18 to 24. Source: arXiv 2305.01569."""
    clip = load_clip(weights, device)
    return lambda images, prompts: clip.scale * clip.cosine(images, prompts)


def hps_v21(weights: Weights, device: str) -> Score:
    """cos(image, prompt), about .2 to .35. Source: arXiv 2306.09341, in the weights of HPSv2.1."""
    return load_clip(weights, device).cosine


def clip_iqa(weights: Weights, device: str) -> Score:
    """A quality score from 0 to 1 that sees no prompt: the probability of "Good photo." against "Bad photo.".

        softmax(exp(logit_scale) cos(image, text))_good

    Source: arXiv 2207.12396; differs: any CLIP model with its positional embedding, where the paper leaves that of a
    ResNet-50 out, so that our numbers compare with each other alone.
    """
    clip = load_clip(weights, device)
    texts = clip.texts(list(ANTONYMS))

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return (clip.scale * clip.images(images) @ texts.T).softmax(dim=1)[:, 0].cpu()

    return score


class Clip:
    """A CLIP model in fp32 with its tokenizer; embeddings have length 1."""

    def __init__(self, model: CLIPModel, tokenizer: Any, device: str):
        self.model, self.tokenizer, self.device = model.to(device).eval().requires_grad_(False), tokenizer, device
        self.scale = float(model.logit_scale.exp())
        self.preprocess = clip_preprocessing(model.config.vision_config.image_size)

    def images(self, images: Tensor) -> Tensor:
        """(B, D) of images (B, 3, H, W) in [-1, 1]."""
        pixels = self.preprocess(images.to(self.device))
        return _unit(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))

    def texts(self, texts: list[str]) -> Tensor:
        """(B, D); a text longer than 77 tokens is cut."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return _unit(self.model.text_projection(pooled))

    @torch.no_grad()
    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Of each image and its prompt, (B,) on the CPU."""
        unique = list(dict.fromkeys(prompts))  # most of a batch have one prompt
        texts = self.texts(unique)[[unique.index(prompt) for prompt in prompts]]
        return (self.images(images) * texts).sum(dim=1).cpu()

    @property
    def _max_tokens(self) -> int:
        return min(MAX_TOKENS, self.model.config.text_config.max_position_embeddings)


def load_clip(weights: Weights, device: str = "cpu") -> Clip:
    """The CLIP model of a folder: as transformers saves it, or one file of open_clip's, beside CLIP's tokenizer.

    Raises ValueError when weights or tokenizer are missing or do not fit.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(weights.folder)
        if (weights.folder / "config.json").exists():
            model = CLIPModel.from_pretrained(weights.folder, use_safetensors=True, dtype=torch.float32)
            return Clip(model, tokenizer, device)
        tensors = read_tensors(weights_file(weights.folder))
    except (OSError, TypeError) as error:
        raise ValueError(f"{weights.name}: no CLIP model with its tokenizer ({_first_line(error)})") from error
    if not is_open_clip(tensors):
        raise ValueError(f"{weights.name} has no config.json, and its weights are not named as open_clip's")
    return Clip(clip_from_open_clip(tensors), tokenizer, device)


def _unit(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=1, keepdim=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
