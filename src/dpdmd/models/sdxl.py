"""Stable Diffusion XL: eps or v prediction, plain guidance, latents passed unpacked, conditioned on the size."""

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction
from dpdmd.models import kohya
from dpdmd.models.noise import UNetAdapter
from dpdmd.store.errors import InputError

NUM_CLIP_TOKENS = 77


class SDXLAdapter(UNetAdapter):
    """Adapter of Stable Diffusion XL.

    The unconditional prompt is "", whereas the stock pipeline uses zero embeddings by default. Guidance scale and
    number of steps are those of arXiv 2602.03139.
    """

    pipeline_class = StableDiffusionXLPipeline
    guidance_scale = 8.0
    num_inference_steps = 50
    token_limits = (("tokenizer", None), ("tokenizer_2", None))

    def __init__(self, source: str):
        super().__init__(source)
        if self.vae_config.get("latents_mean") is not None:
            raise InputError(f"{source}: an SDXL autoencoder with latents_mean is not supported")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `pooled_prompt_embeds` (B, P)."""
        embeds, _, pooled, _ = self.texts.encode_prompt(prompt=list(prompts), do_classifier_free_guidance=False)
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for CLIP's 77 tokens and its pooled embedding."""
        config = self.network_config
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return Condition(
            {
                "prompt_embeds": torch.zeros(num_prompts, NUM_CLIP_TOKENS, config["cross_attention_dim"]),
                "pooled_prompt_embeds": torch.zeros(num_prompts, pooled),
            }
        )

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the U-Net's eps or v to a prediction.

        The size conditioning (arXiv 2307.01952, sec. 2.2) gives the size of x_t as original and as target size, without
        a crop.
        """
        height, width = (self.vae_factor * side for side in x_t.shape[2:])
        time_ids = x_t.new_tensor([height, width, 0, 0, height, width])
        output = network(
            x_t,
            self.timestep(t),
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            added_cond_kwargs={
                "text_embeds": cond.tensors["pooled_prompt_embeds"],
                "time_ids": time_ids.expand(len(x_t), -1),
            },
            return_dict=False,
        )[0]
        return self.converted(x_t, output, t)

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """kohya's names, those of the original layout: ComfyUI does not know diffusers' names of this U-Net."""
        return kohya.lora_names(layers, self.network_config.get("layers_per_block", 2))
