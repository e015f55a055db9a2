"""FLUX.1: velocity prediction, timestep t, packed latents; the dev model takes its guidance scale as an input."""

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed

NUM_T5_TOKENS = 512  # the stock pipeline's default max_sequence_length
EMBEDDED_GUIDANCE = 3.5  # the stock pipeline's default guidance_scale: a network input, not classifier-free guidance


class FluxAdapter(packed.PackedAdapter):
    """Adapter of FLUX.1-dev and FLUX.1-schnell.

    `guidance_scale` is classifier-free guidance (the stock pipeline's true_cfg_scale), which is off by default.
    `embedded_guidance` is the guidance input of a guidance-distilled network (FLUX.1-dev); it is None for a network
    without that input (FLUX.1-schnell).
    """

    pipeline_class = FluxPipeline
    network_class = FluxTransformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 1.0
    num_inference_steps = 28
    unguided: ClassVar = {}  # classifier-free guidance is off unless requested
    token_limits = (("tokenizer", None), ("tokenizer_2", NUM_T5_TOKENS))
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, source: str):
        super().__init__(source)
        self.embedded_guidance = EMBEDDED_GUIDANCE if self.network_config.get("guidance_embeds") else None

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 512, D) of T5 and `pooled_prompt_embeds` (B, P) of CLIP."""
        embeds, pooled, _ = self.texts.encode_prompt(
            prompt=list(prompts), prompt_2=None, max_sequence_length=NUM_T5_TOKENS
        )
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the 512 tokens of T5 and for CLIP's pooled embedding."""
        config = self.network_config
        return Condition(
            {
                "prompt_embeds": torch.zeros(num_prompts, NUM_T5_TOKENS, config["joint_attention_dim"]),
                "pooled_prompt_embeds": torch.zeros(num_prompts, config["pooled_projection_dim"]),
            }
        )

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction.

        embedded_guidance: default: the adapter's own; ignored by a network without a guidance embedding.
        """
        guidance = None
        if self.embedded_guidance is not None:
            value = self.embedded_guidance if embedded_guidance is None else embedded_guidance
            guidance = torch.full_like(t, value)
        embeds = cond.tensors["prompt_embeds"]
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=embeds,
            pooled_projections=cond.tensors["pooled_prompt_embeds"],
            timestep=t,  # the network multiplies timestep and guidance by 1000
            guidance=guidance,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x_t.device),
            img_ids=packed.image_ids(x_t),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)

    def call_arguments(self, scheduler: Any, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The number of steps or the sigmas, and the guidance input. Classifier-free guidance is off by default."""
        arguments = super().call_arguments(scheduler, grid)
        if self.embedded_guidance is None:
            return arguments
        value = self.embedded_guidance if embedded_guidance is None else embedded_guidance
        return arguments | {"guidance_scale": value}
