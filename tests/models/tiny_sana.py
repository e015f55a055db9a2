"""Sana at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tiny_tokenizers import new_gemma_tokenizer
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from dpdmd.models.base import LatentShape

STOCK = SanaPipeline
GUIDANCE_SCALE = 4.5
IMAGE_SIZE = (64, 96)
SHIFT = 3.0


def save(folder: Path, *, out_channels: int = 4, timestep_scale: float = 1.0) -> None:
    """A random pipeline folder with the scheduler of released checkpoints."""
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
    blocks = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8,) * 6,
            "layers_per_block": (1,) * 6,
            "qkv_multiscales": ((),) * 6,
        }.items()
    }
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text_config).eval(),
        vae=AutoencoderDC(latent_channels=4, scaling_factor=0.4, **blocks),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=out_channels,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=16,
            qk_norm="rms_norm_across_heads",
            timestep_scale=timestep_scale,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
    )
    pipeline.save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """Four unshifted sigmas: the Euler scheduler's own default wastes its last step, DPM-Solver's does not."""
    return {"guidance_scale": GUIDANCE_SCALE, "sigmas": [1, 0.75, 0.5, 0.25], "use_resolution_binning": False}


def prepare(pipeline: SanaPipeline) -> None:
    """Euler steps instead of DPM-Solver's, at the same shift."""
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are."""
    return latents
