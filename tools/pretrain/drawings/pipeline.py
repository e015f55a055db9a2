"""The pipeline of the drawings with an untrained transformer and the trained autoencoder and text encoders."""

from pathlib import Path

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from tools.pretrain.drawings.latents import LATENT_CHANNELS, LATENT_SIZE, PATCH_SIZE
from tools.pretrain.drawings.text_encoders import new_tokenizer
from tools.pretrain.pipelines import flow_pipeline
from tools.pretrain.text_encoders import HIDDEN_SIZE


def new_transformer() -> SD3Transformer2DModel:
    """Build an untrained MMDiT: four image tokens (4 x 4 latents, patch size 2), width 184, three blocks.

    Without normalised queries and keys, as in Stable Diffusion 3 medium: the softmax of an ideal network's attention is
    the sharper the less noise there is, and normalised queries know nothing of the noise.
    """
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=3,
        attention_head_dim=46,
        num_attention_heads=4,
        joint_attention_dim=2 * HIDDEN_SIZE,
        caption_projection_dim=184,
        pooled_projection_dim=2 * HIDDEN_SIZE,
        pos_embed_max_size=LATENT_SIZE // PATCH_SIZE,
    )


def new_pipeline(parts: Path) -> StableDiffusion3Pipeline:
    """Build a StableDiffusion3Pipeline with scheduler shift 3; parts: folder of the trained components."""
    return flow_pipeline(parts, new_transformer(), new_tokenizer())
