"""Sana (arXiv 2410.10629): flow prediction, time fed as 1000 t times `timestep_scale`, plain guidance, masked tokens.

Released checkpoints carry a DPMSolverMultistepScheduler on a shifted flow. Its second-order steps remember the step
before, which neither a student nor an anchor can; its shift is kept and its solver replaced by Euler steps. They start
at 1 and feed the network 1000 t; that scheduler starts at the shifted .999 and cuts 1000 t to a whole number.
"""

import inspect
from typing import Any

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import flow_scheduler
from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter

# The stock call puts these sentences before every prompt, and none before the negative one.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaAdapter(StockAdapter):
    """Guidance is the stock call's default; 28 steps are what Sana's authors take with Euler (20 with DPM-Solver)."""

    pipeline_class = SanaPipeline
    network_class = SanaTransformer2DModel
    vae_class = AutoencoderDC
    guidance_scale = 4.5
    num_inference_steps = 28
    token_limits = (("tokenizer", 300),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str):
        super().__init__(source)
        name = self.scheduler_config.get("_class_name")
        self.has_euler = name == FlowMatchEulerDiscreteScheduler.__name__
        is_flow = self.has_euler or self.scheduler_config.get("use_flow_sigmas")
        if not is_flow or self.scheduler_config.get("use_dynamic_shifting"):
            raise ValueError(f"{source}: Sana needs a scheduler of a flow with a fixed shift, got {name}")
        if not self.has_euler:
            self.scheduler_config = {"shift": self.scheduler_config["flow_shift"]}  # all that Euler steps keep of it

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel and side."""
        return 2 ** (len(self.vae_config["encoder_block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token.

        As the stock call by default: INSTRUCTION stands before every prompt except "", the unconditional one. Tokens
        behind the end of a prompt are left out: their attention weight is exp(-10000) = 0.
        """
        return concatenate(self._encode_one(prompt) for prompt in prompts)

    def _encode_one(self, prompt: str) -> Condition:
        embeds, mask, _, _ = self.texts.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            complex_human_instruction=INSTRUCTION if prompt else None,
        )
        num_tokens = int(mask.sum())
        return Condition({"prompt_embeds": embeds[:, :num_tokens].cpu(), "mask": mask[:, :num_tokens].cpu()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """As many tokens as the encoder is given."""
        shape = num_prompts, self.token_limits[0][1]
        embeds = torch.zeros(*shape, self.network_config["caption_channels"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """From the transformer's velocity.

        A network with twice the channels also returns a learned variance, which a flow has no use for.
        """
        out = network(
            hidden_states=x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.tensors["mask"],
            timestep=1000 * t * self.network_config.get("timestep_scale", 1.0),
            return_dict=False,
        )[0]
        return from_velocity(x_t, out[:, : x_t.shape[1]], t)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """What its autoencoder, which has no distribution, makes of them."""
        return self.vae.encode(images.to(self.vae.device), return_dict=False)[0] * self.vae.config.scaling_factor

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock Euler scheduler's grid; in place of DPM-Solver's, the uniform one, less than .001 away from it."""
        if not self.has_euler:
            return self.uniform_grid(num_steps)
        return flow_scheduler.default_grid(self.scheduler_config, num_steps)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance, the model's own size.

        The stock call would make 1024 x 1024 of every model, and would draw other sizes at the nearest of its own list.
        """
        size = self.network_config["sample_size"] * self.vae_factor
        own_size = {"height": size, "width": size, "use_resolution_binning": False}
        return super().call_arguments(grid) | own_size
