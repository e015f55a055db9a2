"""Exact attention over repeated context tokens at the cost of a single token.

A `StableDiffusion3Pipeline` without its T5 encoder appends `max_sequence_length` (256 by default) zero embeddings to
every prompt. Context tokens have no position embeddings, so equal tokens stay equal in every block. n copies therefore
attend, and are attended to, like one token whose attention logit is raised by log(n):

    n exp(q k) = exp(q k + log n).

Folding the copies into one token is exact, for tiny models as well as for SD3.5 without T5.
"""

import math
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


def _heads(states: Tensor, attn: Attention) -> Tensor:
    return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


class FoldedJointAttention:
    """SD3's joint attention in which the last context token stands for `num_copies` equal tokens.

    With `num_copies` = 1 this is the stock attention. Projections and norms are those of the `Attention` module that
    calls it. Raises ValueError if it is given an attention mask, which SD3 does not use.
    """

    def __init__(self, num_copies: int):
        self.num_copies = num_copies

    def __call__(
        self,
        attn: Any,  # an `Attention`, which declares optional what SD3's always has
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ):
        if attention_mask is not None:
            raise ValueError("SD3 attention does not support an attention_mask; pass None")
        num_image_tokens = hidden_states.shape[1]
        query, key, value = (_heads(f(hidden_states), attn) for f in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        bias = None
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (_heads(f(encoder_hidden_states), attn) for f in projections)
            if attn.norm_added_q is not None:
                text_query, text_key = attn.norm_added_q(text_query), attn.norm_added_k(text_key)
            query = torch.cat([query, text_query], dim=2)
            key = torch.cat([key, text_key], dim=2)
            value = torch.cat([value, text_value], dim=2)
            if self.num_copies > 1:
                bias = query.new_zeros(key.shape[2])
                bias[-1] = math.log(self.num_copies)
                bias = bias.expand(query.shape[2], -1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return attn.to_out[1](attn.to_out[0](out))
        image, text = out[:, :num_image_tokens], out[:, num_image_tokens:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](image)), text
