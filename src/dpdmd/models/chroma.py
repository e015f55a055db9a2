"""Chroma1: FLUX.1's layout without CLIP and without a guidance input, with a mask over the prompt's tokens."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length, to which it pads every prompt


class ChromaAdapter(packed.PackedAdapter):
    """Adapter of Chroma1.

    The stock pipeline adds its mask, 1 for the tokens of a prompt and one of its padding, to the logits of attention.
    What it masks is therefore still seen, with less weight, so that all 512 tokens are kept here.
    """

    pipeline_class = ChromaPipeline
    network_class = ChromaTransformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 5.0
    num_inference_steps = 35
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 512, D) of T5 and `prompt_bias` (B, 512), 1 or 0, which is added to attention."""
        embeds, _, mask, *_ = self.texts.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=NUM_TOKENS
        )
        return Condition({"prompt_embeds": embeds.cpu().clone(), "prompt_bias": mask.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the 512 tokens."""
        shape = num_prompts, NUM_TOKENS
        embeds = torch.zeros(*shape, self.network_config["joint_attention_dim"])
        return Condition({"prompt_embeds": embeds, "prompt_bias": torch.ones(shape)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction."""
        embeds, positions = cond.tensors["prompt_embeds"], packed.image_ids(x_t)
        mask = nn.functional.pad(cond.tensors["prompt_bias"], (0, len(positions)), value=1.0)
        _carry(mask, network)
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=embeds,
            timestep=t,  # the network multiplies by 1000
            txt_ids=positions.new_zeros(embeds.shape[1], 3),
            img_ids=positions,
            attention_mask=mask,
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The last tokens: single blocks return those of the prompt before them."""
        return super().picture_tokens(output, x_t, cond)[:, -(x_t.shape[2:].numel() // 4) :]


class _Positions(tuple):
    """What the network's position embedding returns, cosines and sines, with the mask of the same call."""

    mask: Tensor


def _carry(mask: Tensor, network: Any) -> None:
    """Let single blocks that are recomputed in the backward pass see the mask of their call.

    The stock network calls those blocks without it, though with the positions. These carry it: whatever is computed
    between the call and its backward pass, a block is recomputed with the mask that it was computed with.
    """
    network = getattr(network, "module", network)  # without its wrapper for several processes
    if not network.pos_embed._forward_hooks:
        network.pos_embed.register_forward_hook(_give_mask)
        for block in network.single_transformer_blocks:
            block.register_forward_pre_hook(_take_mask)
    network.pos_embed.mask = mask


def _give_mask(pos_embed: Any, args: tuple, output: tuple) -> _Positions:
    positions = _Positions(output)
    positions.mask, pos_embed.mask = pos_embed.mask, None
    return positions


def _take_mask(block: nn.Module, args: tuple) -> tuple | None:
    """The arguments by position are (tokens, modulation, positions) where the block is to be recomputed, else none."""
    return (*args, args[2].mask) if len(args) == 3 else None
