"""FLUX.1 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import NUM_TOKENS, new_tokenizer

STOCK = FluxPipeline
GUIDANCE_SCALE = 2.5
IMAGE_SIZE = (16, 24)
FACTOR = 2


def save(folder: Path, *, guidance_embeds: bool = True, dynamic_shifting: bool = True) -> None:
    """A random pipeline folder: FLUX.1-dev by default, FLUX.1-schnell with both off."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    clip = CLIPTextConfig(
        **shared,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=NUM_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    sizes = {"base_image_seq_len": 8, "max_image_seq_len": 1024}  # an image has 24 tokens
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic_shifting, **sizes),
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
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(**shared, d_model=20, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """Classifier-free guidance; its guidance_scale is the embedded guidance and stays at 3.5."""
    return {"negative_prompt": [""] * num_prompts, "true_cfg_scale": GUIDANCE_SCALE}


def prepare(pipeline: FluxPipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """By the stock pipeline's own method."""
    _, height, width = latent_shape
    return FluxPipeline._unpack_latents(latents, height * FACTOR, width * FACTOR, FACTOR)
