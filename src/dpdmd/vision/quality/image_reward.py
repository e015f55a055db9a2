"""ImageReward: how much people like an image as an answer to its prompt, by BLIP and a linear head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from dpdmd.store.tensors import read_tensors
from dpdmd.vision.preprocessing import clip_preprocessing
from dpdmd.vision.quality.blip_vision import HEAD_WIDTH, vision_model
from dpdmd.vision.quality.load import weights_file
from dpdmd.vision.weights import Weights

# Of the scores of its training set, by which the release standardises.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# Beside the text encoder's weights: it follows from their shape.
BUFFER = "embeddings.position_ids"


def image_reward(weights: Weights, device: str) -> Callable[[Tensor, list[str]], Tensor]:
    """(head(h) - MEAN) / STD, h the first token of the prompt, read by BLIP's text encoder that attends to the image.

    About -2 to 2. The prompt is cut at 35 tokens. weights: the release's tensors under their own names, in one
    .safetensors file, beside BERT's vocab.txt. Source: arXiv 2304.05977.
    Raises ValueError when weights or vocabulary are missing or do not fit.
    """
    tensors = read_tensors(weights_file(weights.folder))
    try:
        tokenizer = BertTokenizer.from_pretrained(weights.folder)
        network = ImageReward(tensors)
    except (OSError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise ValueError(f"{weights.name} holds no ImageReward with BERT's vocab.txt ({reason})") from None
    network = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def score(images: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(device)
        return network(images.to(device), tokens.input_ids, tokens.attention_mask).cpu()

    return score


class ImageReward(nn.Module):
    """The released network, its shape read off its tensors."""

    def __init__(self, tensors: dict[str, Tensor]):
        """Raises KeyError or RuntimeError when tensors are missing or do not fit."""
        super().__init__()
        vision = {name.removeprefix(VISION): t for name, t in tensors.items() if name.startswith(VISION)}
        text = {name.removeprefix(TEXT): t for name, t in tensors.items() if name.startswith(TEXT)}
        text.pop(BUFFER, None)
        head = {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)}
        self.vision = vision_model(vision)
        self.text = BlipTextModel(_text_config(text), add_pooling_layer=False)
        # Linear layers without anything between them; the numbers that are missing are dropout's.
        self.head = nn.ModuleDict({name[:-7]: nn.Linear(*head[name].shape[::-1]) for name in head if "weight" in name})
        for module, own in ((self.text, text), (self.head, head)):
            module.load_state_dict(own)
        self.preprocess = clip_preprocessing(self.vision.config.image_size)

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [-1, 1] and tokens (B, L)."""
        seen = self.vision(pixel_values=self.preprocess(images)).last_hidden_state
        hidden = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        for name in sorted(self.head, key=int):
            hidden = self.head[name](hidden)
        return (hidden[:, 0] - MEAN) / STD


def _text_config(tensors: dict[str, Tensor]) -> BlipTextConfig:
    vocab_size, width = tensors["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives it the layers that attend to the image; it is called as an encoder
    )
