"""Stage 2 of a built-in teacher: a word tokenizer and two small CLIP text encoders.

The encoders are trained to predict from their pooled output which factors a caption names and which it leaves free.
This replaces the contrastive training of a full-size CLIP. They are frozen before the denoising network is trained.
"""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from dpdmd.world.captions import NAMEABLE_FACTORS, all_captions, named_factors
from dpdmd.world.scenes import DISCRETE_FACTORS

NUM_TOKENS = 10  # start, up to eight words, end
HIDDEN_SIZE = 64


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word tokenizer of the scenes' captions."""
    return word_tokenizer(all_captions(), NUM_TOKENS)


def word_tokenizer(captions: list[str], num_tokens: int) -> PreTrainedTokenizerFast:
    """Build a lower-casing word tokenizer with the captions' vocabulary; other words become <|unknown|>.

    num_tokens: to which texts are padded.
    """
    special = ["<|pad|>", "<|start|>", "<|unknown|>"]
    words = sorted({word for text in captions for word in text.split()})
    # The end token needs the largest id: CLIP pools at the first end token, which old configs find as the largest id.
    vocabulary = {token: i for i, token in enumerate([*special, *words, "<|end|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>",
        special_tokens=[("<|start|>", vocabulary["<|start|>"]), ("<|end|>", vocabulary["<|end|>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=num_tokens,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
    )


def new_text_encoder(
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_layers: int = 2,
    intermediate_size: int = 4 * HIDDEN_SIZE,
    num_heads: int = 2,
) -> CLIPTextModelWithProjection:
    """Build an untrained CLIP text encoder; the pipeline uses the last but one layer's states and pooled projection."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=intermediate_size,
        projection_dim=HIDDEN_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Token ids (B, L), exactly as in the stock pipeline; L is the tokenizer's largest length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def factor_labels(texts: list[str]) -> dict[str, Tensor]:
    """Labels (B,) per nameable factor: the index of the named value, or the number of values if it is left free."""
    labels: dict[str, list[int]] = {factor: [] for factor in NAMEABLE_FACTORS}
    for text in texts:
        named = named_factors(text)
        for factor in NAMEABLE_FACTORS:
            values = DISCRETE_FACTORS[factor]
            labels[factor].append(values.index(named[factor]) if factor in named else len(values))
    return {factor: torch.tensor(values) for factor, values in labels.items()}


def train_text_encoder(
    tokenizer: PreTrainedTokenizerFast, num_steps: int, batch_size: int, seed: int, log=print
) -> CLIPTextModelWithProjection:
    """Train an encoder through temporary linear heads on its pooled output, and return it frozen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = new_text_encoder(tokenizer)
    heads = nn.ModuleDict({f: nn.Linear(HIDDEN_SIZE, len(DISCRETE_FACTORS[f]) + 1) for f in NAMEABLE_FACTORS})
    texts = ["", *all_captions()]
    tokens, labels = tokenize(tokenizer, texts), factor_labels(texts)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    for step in tqdm(range(num_steps), desc=f"text encoder (seed {seed})"):
        rows = torch.randint(0, len(texts), (batch_size,), generator=generator)
        rows[0] = 0
        pooled = encoder(tokens[rows]).text_embeds
        loss = sum(F.cross_entropy(heads[f](pooled), labels[f][rows]) for f in NAMEABLE_FACTORS)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == num_steps - 1:
            log({"stage": "text_encoder", "seed": seed, "step": step, "loss": loss.item()})
    return encoder.eval().requires_grad_(False)
