"""Lumina-Image 2.0 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from tiny_tokenizers import new_gemma_tokenizer
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from dpdmd.models.base import LatentShape

STOCK = Lumina2Pipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (32, 48)


def save(folder: Path, *, dynamic_shift: bool = False, channels: tuple[int, ...] = (8, 8, 8, 8)) -> None:
    """A random pipeline folder; channels: of the autoencoder, whose number of blocks the stock pipeline knows."""
    torch.manual_seed(0)
    tokenizer = new_gemma_tokenizer()
    text_config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=16,
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
        vae=AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.4,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=Gemma2Model(text_config).eval(),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The stock call's own negative prompt is empty, and its guidance is normalised."""
    return {"guidance_scale": GUIDANCE_SCALE}


def prepare(pipeline: Lumina2Pipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
