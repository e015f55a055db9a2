"""Qwen-Image at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import new_tokenizer

STOCK = QwenImagePipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (16, 24)
FACTOR = 2


def save(folder: Path) -> None:
    """A random pipeline folder; its grids shift with the image size and end at 0.02 as those of Qwen-Image."""
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
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, base_image_seq_len=8, max_image_seq_len=1024
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
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, pad_token_id=tokenizer.pad_token_id)
        ).eval(),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The empty negative prompt, which the stock pipeline's documentation writes as one blank."""
    return {"negative_prompt": [""] * num_prompts, "true_cfg_scale": GUIDANCE_SCALE}


def prepare(pipeline: QwenImagePipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """By the stock pipeline's own method, without the axis of its one frame."""
    _, height, width = latent_shape
    return QwenImagePipeline._unpack_latents(latents, height * FACTOR, width * FACTOR, FACTOR)[:, :, 0]
