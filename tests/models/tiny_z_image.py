"""Z-Image at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny_tokenizers import new_chat_tokenizer
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from dpdmd.models.base import LatentShape

STOCK = ZImagePipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (32, 48)


def save(folder: Path, *, dynamic_shift: bool = False) -> None:
    """A random pipeline folder; the shift is fixed, as in released checkpoints, or goes by the image's size."""
    torch.manual_seed(0)
    tokenizer = new_chat_tokenizer()
    text_config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    # Learned tokens that fill images and prompts up to multiples of 32.
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.4,
            shift_factor=0.1,
        ),
        text_encoder=Qwen3Model(text_config).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """c + g (c - u) is u + (g + 1) (c - u); the stock call's own negative prompt is empty."""
    return {"guidance_scale": GUIDANCE_SCALE - 1}


def prepare(pipeline: ZImagePipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
