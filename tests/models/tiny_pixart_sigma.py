"""PixArt-Sigma at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from dpdmd.models.base import LatentShape
from dpdmd.store.files import read_json, write_json
from tools.pretrain.text_encoders import new_tokenizer

STOCK = PixArtSigmaPipeline
GUIDANCE_SCALE = 3.0
IMAGE_SIZE = (16, 24)


def save(folder: Path, *, sample_size: int = 16) -> None:
    """A random pipeline folder with the solver of released checkpoints, whose network has its class's older name."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=sample_size,
        interpolation_scale=1,
    )
    for parameter in transformer.parameters():  # twice the usual size, so that all inputs count
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    t5 = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
    )
    PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.01, beta_schedule="linear"),
        vae=AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
        ),
        text_encoder=T5EncoderModel(t5).eval(),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    config = Path(folder) / "transformer" / "config.json"
    write_json(config, read_json(config) | {"_class_name": "Transformer2DModel"})


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """Prompts as they are written, at the size that is asked for."""
    return {"guidance_scale": GUIDANCE_SCALE, "clean_caption": False, "use_resolution_binning": False}


def prepare(pipeline: PixArtSigmaPipeline) -> None:
    """DDIM with trailing timesteps, down to clean data."""
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
