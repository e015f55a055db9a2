"""Chroma1 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import new_tokenizer

STOCK = ChromaPipeline
GUIDANCE_SCALE = 3.0
IMAGE_SIZE = (16, 24)
FACTOR = 2


def save(folder: Path) -> None:
    """A random pipeline folder whose shift goes by the image's size."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=20,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    t5 = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        d_model=20,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
    )
    ChromaPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=8, max_image_seq_len=1024
        ),
        vae=AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=T5EncoderModel(t5).eval(),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The empty negative prompt, as a list like the prompts."""
    return {"negative_prompt": [""] * num_prompts, "guidance_scale": GUIDANCE_SCALE}


def prepare(pipeline: ChromaPipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """By the stock pipeline's own method."""
    _, height, width = latent_shape
    return ChromaPipeline._unpack_latents(latents, height * FACTOR, width * FACTOR, FACTOR)
