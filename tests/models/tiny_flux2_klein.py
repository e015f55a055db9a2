"""FLUX.2-klein at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tiny_tokenizers import new_chat_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from dpdmd.models.base import LatentShape

STOCK = Flux2KleinPipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (16, 24)
MEAN, VARIANCE = torch.linspace(-0.4, 0.6, 16), torch.linspace(0.5, 3.0, 16)  # of the latents' channels
EPSILON = 1e-4


def save(folder: Path, *, is_distilled: bool = False) -> None:
    """A random pipeline folder; its text encoder has the 27 layers that the stock pipeline reads."""
    torch.manual_seed(0)
    tokenizer = new_chat_tokenizer()
    text_config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=27,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        batch_norm_eps=EPSILON,
    )
    vae.bn.running_mean.copy_(MEAN)
    vae.bn.running_var.copy_(VARIANCE)
    Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text_config).eval(),
        tokenizer=tokenizer,
        is_distilled=is_distilled,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The stock call's own negative prompt is empty."""
    return {"guidance_scale": GUIDANCE_SCALE}


def prepare(pipeline: Flux2KleinPipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """In patches and normalised, as the stock call had them before it returned what the autoencoder takes."""
    mean, std = MEAN[:, None, None], (VARIANCE + EPSILON).sqrt()[:, None, None]
    return (F.pixel_unshuffle(latents, 2) - mean) / std
