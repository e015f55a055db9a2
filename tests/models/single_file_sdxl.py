"""A random SDXL at the size of a test whose text encoders differ in width, and its weights as one checkpoint."""

import tiny_sdxl
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from original_sdxl import clip, open_clip, unet, vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tools.pretrain.autoencoder import new_autoencoder
from tools.pretrain.text_encoders import HIDDEN_SIZE, NUM_TOKENS, new_tokenizer

NUM_LAYERS = 2


def new_pipeline(seed: int) -> StableDiffusionXLPipeline:
    """A random SDXL whose text encoders have widths of their own, as the real ones have."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    shared = {"vocab_size": len(tokenizer), "max_position_embeddings": NUM_TOKENS, "num_hidden_layers": NUM_LAYERS}
    shared |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "num_attention_heads": 2}
    first = CLIPTextConfig(**shared, hidden_size=HIDDEN_SIZE // 2, intermediate_size=HIDDEN_SIZE)
    second = CLIPTextConfig(
        **shared, hidden_size=3 * HIDDEN_SIZE // 2, intermediate_size=HIDDEN_SIZE, projection_dim=HIDDEN_SIZE
    )
    second.projection_dim = HIDDEN_SIZE
    pipeline = StableDiffusionXLPipeline(
        unet=tiny_sdxl.new_unet(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=new_autoencoder(),
        text_encoder=CLIPTextModel(first).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer_2=tokenizer,
    )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for parameter in part.parameters():  # norms and biases too, so that nothing is equal to something else
            parameter.data += 0.02 * torch.randn_like(parameter)
    return pipeline


def one_file(pipeline: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """The pipeline's weights as one checkpoint."""
    config = pipeline.vae.config
    return {
        **unet(pipeline.unet.state_dict(), num_levels=2, num_resnets=1),
        **vae(pipeline.vae.state_dict(), num_levels=len(config.block_out_channels)),
        **clip(pipeline.text_encoder.state_dict()),
        **open_clip(pipeline.text_encoder_2.state_dict(), num_layers=NUM_LAYERS),
    }
