"""The pipeline of the drawings with an untrained U-Net and the trained autoencoder and text encoders."""

from pathlib import Path

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from tools.pretrain.drawings.latents import LATENT_CHANNELS, LATENT_SIZE
from tools.pretrain.drawings.text_encoders import new_tokenizer
from tools.pretrain.pipelines import noise_pipeline
from tools.pretrain.text_encoders import HIDDEN_SIZE


def new_unet() -> UNet2DConditionModel:
    """Build an untrained U-Net like SDXL's, with attention to the caption at 4 x 4 and at 2 x 2."""
    time_size = 32
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 112),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=2 * HIDDEN_SIZE,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_size,
        projection_class_embeddings_input_dim=HIDDEN_SIZE + 6 * time_size,
    )


def new_pipeline(parts: Path) -> StableDiffusionXLPipeline:
    """Build a StableDiffusionXLPipeline; parts: folder of the trained components. The empty prompt is encoded."""
    return noise_pipeline(parts, new_unet(), new_tokenizer())
