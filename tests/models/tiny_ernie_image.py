"""ERNIE-Image at the size of a test; see test_contract.py for what a family's module holds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM, Mistral3Config, Mistral3Model

from dpdmd.models.base import LatentShape
from tools.pretrain.text_encoders import new_tokenizer

STOCK = ErnieImagePipeline
GUIDANCE_SCALE = 4.0
IMAGE_SIZE = (16, 24)


def save(
    folder: Path, *, dynamic_shift: bool = False, shift_terminal: float | None = None, patch_size: int = 1
) -> None:
    """A random pipeline folder with a language model that rewrites prompts unless the call says not to.

    dynamic_shift, shift_terminal: of the scheduler. patch_size: of the network.
    """
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        patch_size=patch_size,
        text_in_dim=16,
        rope_axes_dim=(4, 2, 2),
    )
    for module in (transformer.adaLN_modulation[-1], transformer.final_linear):  # which start at zero
        torch.nn.init.normal_(module.weight, std=0.3)
        torch.nn.init.normal_(module.bias, std=0.3)
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        batch_norm_eps=0.5,  # which the stock pipeline does not use
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.4, 0.6, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 3.0, 16))
    ErnieImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=dynamic_shift, shift_terminal=shift_terminal
        ),
        vae=vae,
        text_encoder=Mistral3Model(
            Mistral3Config(text_config={"model_type": "mistral", **text}, vision_config=vision)
        ).eval(),
        tokenizer=tokenizer,
        pe=Ministral3ForCausalLM(Ministral3Config(**text)).eval(),
        pe_tokenizer=tokenizer,
    ).save_pretrained(folder)


def stock_arguments(num_prompts: int) -> dict[str, Any]:
    """The stock call's own negative prompt is empty; prompts are not rewritten."""
    return {"guidance_scale": GUIDANCE_SCALE, "use_pe": False}


def prepare(pipeline: ErnieImagePipeline) -> None:
    """Nothing to set."""


def unpacked(latents: Tensor, latent_shape: LatentShape) -> Tensor:
    """As they are: in patches and normalised."""
    return latents
