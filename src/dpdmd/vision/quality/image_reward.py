"""ImageReward: a BLIP model that predicts how much people prefer an image, given its prompt."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from dpdmd.models.tokenizer import load_tokenizer
from dpdmd.store.errors import library_errors
from dpdmd.store.tensors import read_tensors
from dpdmd.vision.preprocessing import clip_preprocessing
from dpdmd.vision.quality.blip_vision import HEAD_WIDTH, vision_model
from dpdmd.vision.quality.load import weights_file
from dpdmd.vision.weights import Weights

# Mean and std of the scores on the training set, with which the release standardises scores.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# A buffer saved with the text encoder's weights, which follows from their shapes.
BUFFER = "embeddings.position_ids"


def image_reward(weights: Weights, device: str) -> Callable[[Tensor, list[str]], Tensor]:
    """ImageReward, a score of about -2 to 2.

        (head(h) - MEAN) / STD

    h is the hidden state of the first prompt token in BLIP's text encoder, which cross-attends to the image. Prompts
    are truncated to 35 tokens.
    weights: a folder with the release's tensors under their own names, in one .safetensors file, and BERT's vocab.txt.
    Raises ValueError if weights or vocabulary are missing or do not fit.
    Source: arXiv 2304.05977.
    """
    tensors = read_tensors(weights_file(weights.folder))
    with library_errors(f"{weights.name} does not contain ImageReward and BERT's vocab.txt"):
        tokenizer = load_tokenizer(BertTokenizer, str(weights.folder), "")
        network = ImageReward(tensors)
    network = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def score(images: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(device)
        return network(images.to(device), tokens.input_ids, tokens.attention_mask).cpu()

    return score


class ImageReward(nn.Module):
    """The released network, with its configuration inferred from the shapes of its tensors."""

    def __init__(self, tensors: dict[str, Tensor]):
        """Raises KeyError or RuntimeError if tensors are missing or do not fit."""
        super().__init__()
        vision = {name.removeprefix(VISION): t for name, t in tensors.items() if name.startswith(VISION)}
        text = {name.removeprefix(TEXT): t for name, t in tensors.items() if name.startswith(TEXT)}
        text.pop(BUFFER, None)
        head = {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)}
        self.vision = vision_model(vision)
        self.text = BlipTextModel(_text_config(text), add_pooling_layer=False)
        # Linear layers with only dropout between them, which accounts for the gaps in the numbering.
        sides = {name[:-7]: tensor.shape[::-1] for name, tensor in head.items() if "weight" in name}
        self.head = nn.ModuleDict(
            {name: nn.Linear(*side) for name, side in sides.items()}  # pyright: ignore[reportArgumentType]  # two sides
        )
        for module, own in ((self.text, text), (self.head, head)):
            module.load_state_dict(own)
        self.preprocess = clip_preprocessing(cast("int", self.vision.config.image_size))

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [-1, 1] and prompt tokens (B, L)."""
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
        is_decoder=True,  # adds the cross-attention to the image; the model is called as an encoder
    )
