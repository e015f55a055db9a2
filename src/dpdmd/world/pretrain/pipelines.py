"""Untrained pipelines around the trained autoencoder and text encoders: what the denoising networks are trained in."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dpdmd.world.pretrain.text_encoders import HIDDEN_SIZE, new_tokenizer

LATENT_SIZE = 8
LATENT_CHANNELS = 4


def new_transformer() -> SD3Transformer2DModel:
    """Untrained MMDiT: 16 image tokens (8 x 8 latents, patch 2), width 128, four blocks."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * HIDDEN_SIZE,
        caption_projection_dim=128,
        pooled_projection_dim=2 * HIDDEN_SIZE,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def silent_t5(vocab_size: int) -> T5EncoderModel:
    """A one-layer T5 whose final norm is zero, so that every output is exactly zero.

    Stock diffusers treats a missing T5 as 256 zero embeddings, but loads a folder without one only when told so by
    argument. This says the same and loads like any other.
    """
    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=2 * HIDDEN_SIZE, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval()


def sd3_pipeline(parts: Path) -> StableDiffusion3Pipeline:
    """Flow prediction: a StableDiffusion3Pipeline, scheduler shift 3. `parts`: where the trained parts stand."""
    tokenizer = new_tokenizer()
    first, second = (CLIPTextModelWithProjection.from_pretrained(parts / f"text_encoder_{i}").eval() for i in (1, 2))
    return StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=silent_t5(len(tokenizer)),
        tokenizer_3=tokenizer,
    )
