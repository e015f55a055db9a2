"""Stable Diffusion 1 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import HIDDEN_SIZE, new_text_encoder, new_tokenizer

STOCK = StableDiffusionPipeline
GUIDANCE_SCALE = 3.0
IMAGE_SIZE = (32, 48)


def save(folder: Path, *, prediction_type: str = "epsilon", zero_snr: bool = False) -> None:
    """A random pipeline folder, without a safety checker, with the scheduler of Stable Diffusion 1.5."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=HIDDEN_SIZE,
    )
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_v.weight", "attn2.to_out.0.weight")):
            parameter.data *= 4
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    schedule |= {"prediction_type": prediction_type}
    StableDiffusionPipeline(
        unet=unet,
        scheduler=DDIMScheduler(**schedule, clip_sample=False, rescale_betas_zero_snr=True)
        if zero_snr
        else PNDMScheduler(**schedule, skip_prk_steps=True),
        vae=AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
        ),
        text_encoder=CLIPTextModel(new_text_encoder(tokenizer).config).eval(),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The stock call's own negative prompt is empty."""
    return {"guidance_scale": GUIDANCE_SCALE}


def prepare(pipeline: StableDiffusionPipeline) -> None:
    """DDIM with trailing timesteps, down to clean data."""
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
