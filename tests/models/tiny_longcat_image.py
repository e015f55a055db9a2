"""LongCat-Image at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import new_tokenizer

STOCK = LongCatImagePipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (16, 24)
FACTOR = 2


def save(folder: Path) -> None:
    """A random pipeline folder; a tokenizer stands for the processor of the rewriting, which needs torchvision."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    LongCatImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=8, max_image_seq_len=1024
        ),
        vae=AutoencoderKL(
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, pad_token_id=tokenizer.pad_token_id)
        ).eval(),
        tokenizer=tokenizer,
        text_processor=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The empty negative prompt as a list like the prompts, which are not rewritten."""
    arguments = {"negative_prompt": [""] * num_prompts, "guidance_scale": GUIDANCE_SCALE}
    return arguments | {"enable_prompt_rewrite": False}


def prepare(pipeline: LongCatImagePipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """By FLUX.1's stock method: the packing is the same."""
    _, height, width = latent_shape
    return FluxPipeline._unpack_latents(latents, height * FACTOR, width * FACTOR, FACTOR)
