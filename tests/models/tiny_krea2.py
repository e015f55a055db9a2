"""Krea 2 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import new_tokenizer

STOCK = Krea2Pipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (16, 24)
FACTOR = 2


def save(folder: Path, *, is_distilled: bool = False) -> None:
    """A random pipeline folder that reads three layers of its text encoder; its shift goes by the image's size."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    for name, parameter in transformer.named_parameters():  # what starts at zero, and all inputs twice as strong
        if name.endswith("scale_shift_table"):
            torch.nn.init.normal_(parameter, std=0.5)
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    Krea2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=8, max_image_seq_len=1024
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.7, 0.2, 0.1, -0.3],
            latents_std=[2.8, 1.4, 0.6, 1.2],
        ),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval(),
        tokenizer=tokenizer,
        text_encoder_select_layers=(0, 1, 2),
        is_distilled=is_distilled,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """c + g (c - u) is u + (g + 1) (c - u); the stock call's own negative prompt is empty."""
    return {"guidance_scale": GUIDANCE_SCALE - 1}


def prepare(pipeline: Krea2Pipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """By FLUX.1's stock method: the packing is the same."""
    _, height, width = latent_shape
    return FluxPipeline._unpack_latents(latents, height * FACTOR, width * FACTOR, FACTOR)
