"""Stable Diffusion 3 at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

from dpdmd.models.base import LatentShape
from tools.pretrain.autoencoder import new_autoencoder
from tools.pretrain.pipelines import new_transformer, silent_t5
from tools.pretrain.text_encoders import new_text_encoder, new_tokenizer

STOCK = StableDiffusion3Pipeline
GUIDANCE_SCALE = 3.5
IMAGE_SIZE = (32, 48)


def save(folder: Path, *, speaking_t5: bool = False, num_layers: int = 4) -> None:
    """A random pipeline folder. Its T5 is silent, like the built-in teacher's, unless `speaking_t5`.

    num_layers: of the transformer, its last ones.
    """
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    t5 = silent_t5(len(tokenizer))
    if speaking_t5:
        torch.nn.init.ones_(t5.encoder.final_layer_norm.weight)
    pipeline = StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=new_autoencoder(),
        text_encoder=new_text_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(tokenizer).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )
    pipeline.transformer.transformer_blocks = pipeline.transformer.transformer_blocks[-num_layers:]
    pipeline.transformer.register_to_config(num_layers=num_layers)
    pipeline.vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    pipeline.save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The stock call's own negative prompt is empty."""
    return {"guidance_scale": GUIDANCE_SCALE}


def prepare(pipeline: StableDiffusion3Pipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
