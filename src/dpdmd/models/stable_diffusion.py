"""Stable Diffusion 1 and 2: eps or v prediction, plain guidance, latents passed unpacked."""

from functools import cached_property
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction
from dpdmd.models import kohya, parts
from dpdmd.models.noise import UNetAdapter
from dpdmd.store.errors import InputError

NUM_CLIP_TOKENS = 77


class StableDiffusionAdapter(UNetAdapter):
    """Adapter of Stable Diffusion 1.x and 2.x.

    The safety checker of a pipeline is not loaded, and none of our images passes through it; an export keeps it.
    """

    pipeline_class = StableDiffusionPipeline
    guidance_scale = 7.5
    num_inference_steps = 50
    token_limits = (("tokenizer", None),)

    def __init__(self, source: str):
        super().__init__(source)
        for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
            if self.network_config.get(key) is not None:
                raise InputError(f"{source}: a Stable Diffusion U-Net with {key} is not supported")

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with only its tokenizer and text encoder."""
        unused = ("safety_checker", "feature_extractor", "image_encoder")
        return parts.load_text_pipeline(
            self.pipeline_class, self.source, self.network_name, "vae", *unused, requires_safety_checker=False
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 77, D)."""
        embeds, _ = self.texts.encode_prompt(list(prompts), self.texts.device, 1, do_classifier_free_guidance=False)
        return Condition({"prompt_embeds": embeds.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for CLIP's 77 tokens."""
        size = self.network_config["cross_attention_dim"]
        return Condition({"prompt_embeds": torch.zeros(num_prompts, NUM_CLIP_TOKENS, size)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the U-Net's eps or v to a prediction."""
        embeds = cond.tensors["prompt_embeds"]
        output = network(x_t, self.timestep(t), encoder_hidden_states=embeds, return_dict=False)[0]
        return self.converted(x_t, output, t)

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """kohya's names, which for this U-Net are made of diffusers' own: ComfyUI does not know those by themselves."""
        return kohya.lora_names(layers)
