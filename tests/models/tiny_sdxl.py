"""Stable Diffusion XL at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from dpdmd.models.base import LatentShape
from tools.pretrain.autoencoder import new_autoencoder
from tools.pretrain.text_encoders import HIDDEN_SIZE, new_text_encoder, new_tokenizer

STOCK = StableDiffusionXLPipeline
GUIDANCE_SCALE = 3.0
IMAGE_SIZE = (32, 48)
NUM_TIME_CHANNELS = 8


def new_unet() -> UNet2DConditionModel:
    """A random U-Net whose output depends on its prompt."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        cross_attention_dim=2 * HIDDEN_SIZE,
        addition_embed_type="text_time",
        addition_time_embed_dim=NUM_TIME_CHANNELS,
        projection_class_embeddings_input_dim=HIDDEN_SIZE + 6 * NUM_TIME_CHANNELS,
    )
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_v.weight", "attn2.to_out.0.weight")):
            parameter.data *= 4
    return unet


def save(folder: Path, *, prediction_type: str = "epsilon") -> None:
    """A random pipeline folder with the scheduler that SDXL is published with."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        unet=new_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        vae=new_autoencoder(),
        text_encoder=CLIPTextModel(new_text_encoder(tokenizer).config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(tokenizer).eval(),
        tokenizer_2=tokenizer,
    )
    pipeline.vae.register_to_config(scaling_factor=0.7)
    pipeline.save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The empty prompt, where the stock default would be zeros."""
    return {"guidance_scale": GUIDANCE_SCALE, "negative_prompt": [""] * num_prompts}


def prepare(pipeline: StableDiffusionXLPipeline) -> None:
    """DDIM with trailing timesteps, down to clean data."""
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
