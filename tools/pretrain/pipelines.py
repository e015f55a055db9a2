"""Pipelines with an untrained denoising network and the trained autoencoder and text encoders."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dpdmd.store.files import read_json, write_json
from tools.pretrain.text_encoders import HIDDEN_SIZE, new_tokenizer

LATENT_SIZE = 8
LATENT_CHANNELS = 4


def new_transformer() -> SD3Transformer2DModel:
    """Build an untrained MMDiT: 16 image tokens (8 x 8 latents, patch size 2), width 128, four blocks."""
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


def new_unet() -> UNet2DConditionModel:
    """Build an untrained U-Net like SDXL's: a convolutional level at 8 x 8, and attention to the caption at 4 x 4."""
    time_size = 32
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 4),  # diffusers' name for the number of heads
        cross_attention_dim=2 * HIDDEN_SIZE,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_size,
        projection_class_embeddings_input_dim=HIDDEN_SIZE + 6 * time_size,
    )


def silent_t5(vocab_size: int) -> T5EncoderModel:
    """Build a one-layer T5 whose final norm is zero, so that all outputs are exactly zero.

    Stock diffusers replaces a missing T5 by 256 zero embeddings, but loads a folder without one only if an argument
    says so. This encoder has the same effect and needs no argument.
    """
    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=2 * HIDDEN_SIZE, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval()


def sd3_pipeline(parts: Path) -> StableDiffusion3Pipeline:
    """Build the flow of the scenes."""
    return flow_pipeline(parts, new_transformer(), new_tokenizer())


def sdxl_pipeline(parts: Path) -> StableDiffusionXLPipeline:
    """Build the noise-predicting pipeline of the scenes. SDXL has no shift_factor."""
    pipeline = noise_pipeline(parts, new_unet(), new_tokenizer())
    pipeline.vae.register_to_config(shift_factor=None)
    return pipeline


def noise_pipeline(
    parts: Path, unet: UNet2DConditionModel, tokenizer: PreTrainedTokenizerFast
) -> StableDiffusionXLPipeline:
    """Build a StableDiffusionXLPipeline with SDXL's betas and trailing timesteps.

    As for the flow, an empty negative prompt is encoded instead of being replaced by zeros.
    parts: folder of the trained components.
    """
    vae = AutoencoderKL.from_pretrained(parts / "vae")
    return StableDiffusionXLPipeline(
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        ),
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder_1").eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(parts / "text_encoder_2").eval(),
        tokenizer_2=tokenizer,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def flow_pipeline(
    parts: Path, transformer: SD3Transformer2DModel, tokenizer: PreTrainedTokenizerFast
) -> StableDiffusion3Pipeline:
    """Build a StableDiffusion3Pipeline with scheduler shift 3 and a silent T5; parts: of the trained components."""
    first, second = (CLIPTextModelWithProjection.from_pretrained(parts / f"text_encoder_{i}").eval() for i in (1, 2))
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=silent_t5(len(tokenizer)),
        tokenizer_3=tokenizer,
    )


def save_in_half_precision(pipeline: DiffusionPipeline, out: Path) -> None:
    """Write a pipeline whose weights are stored in fp16, half as large, and loaded in fp32 on a CPU.

    transformers loads weights in the dtype that their configuration names, diffusers in fp32. The text encoders'
    therefore names fp32, so that all parts load alike.
    """
    pipeline.to(torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    for config in out.glob("text_encoder*/config.json"):
        write_json(config, {**read_json(config), "dtype": "float32"})
    config = out / "vae" / "config.json"  # in which diffusers writes where it was read from
    write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})
