"""Sana (arXiv 2410.10629): velocity prediction, timestep 1000 t times `timestep_scale`, plain guidance, masked tokens.

Released checkpoints come with a DPMSolverMultistepScheduler on a shifted flow. Its second-order steps depend on the
previous step, which neither a student nor an anchor supports. We keep its shift and replace its solver by Euler steps.
These start at t = 1 and feed the network 1000 t, whereas the saved scheduler starts at the shifted 0.999 and truncates
1000 t to an integer.
"""

import inspect
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import flow_scheduler
from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter
from dpdmd.store.errors import InputError

# The stock pipeline prepends these sentences to every prompt, but not to the negative prompt.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaAdapter(StockAdapter):
    """Adapter of Sana.

    The guidance scale is the stock pipeline's default. 28 is the number of steps that Sana's authors use with an Euler
    solver (20 with DPM-Solver).
    """

    pipeline_class = SanaPipeline
    network_class = SanaTransformer2DModel
    vae_class = AutoencoderDC
    guidance_scale = 4.5
    num_inference_steps = 28
    token_limits = (("tokenizer", 300),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)
    pipeline_gives_sigmas = False

    def __init__(self, source: str):
        super().__init__(source)
        if self.scheduler_config.get("use_dynamic_shifting"):
            raise InputError(
                f"{source}: Sana needs a scheduler with a fixed shift; use_dynamic_shifting is not supported"
            )

    @property
    def notes(self) -> list[str]:
        """None: Euler steps are what this family's teacher always takes (docs/models.md)."""
        return []

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** (len(self.vae_config["encoder_block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token.

        As in the stock pipeline, INSTRUCTION is prepended to every prompt except "", the unconditional one. Padding
        tokens are dropped: in the stock pipeline their attention weight is exp(-10000) = 0.
        """
        return concatenate(self._encode_one(prompt, INSTRUCTION if prompt else None) for prompt in prompts)

    @torch.no_grad()
    def encode_negative(self, prompts: list[str]) -> Condition:
        """Like `encode`, but as in the stock pipeline never with INSTRUCTION."""
        return concatenate(self._encode_one(prompt, None) for prompt in prompts)

    def _encode_one(self, prompt: str, instruction: list[str] | None) -> Condition:
        embeds, mask, _, _ = self.texts.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            complex_human_instruction=instruction,
        )
        num_tokens = int(mask.sum())
        return Condition({"prompt_embeds": embeds[:, :num_tokens].cpu(), "mask": mask[:, :num_tokens].cpu()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the largest number of tokens that the text encoder is given."""
        shape = num_prompts, self.token_limits[0][1]
        embeds = torch.zeros(*shape, self.network_config["caption_channels"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction.

        A network with twice as many output channels also returns a learned variance, which a flow does not use.
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
        """The latents of the autoencoder, which is deterministic, times scaling_factor."""
        return self.vae.encode(images.to(self.vae.device), return_dict=False)[0] * self.vae.config.scaling_factor

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock Euler scheduler's grid. The uniform grid, within 0.001 of it, replaces that of DPM-Solver."""
        if self.replaced_solver:
            return self.uniform_grid(num_steps)
        return flow_scheduler.stock_grid(
            self.scheduler_config, num_steps, self.source, pipeline_gives_sigmas=self.pipeline_gives_sigmas
        )

    def call_arguments(self, scheduler: Any, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The number of steps or the sigmas, no guidance, and the model's own image size.

        By default the stock pipeline would generate 1024 x 1024 images with every model, and would replace other sizes
        by the nearest one of its own list.
        """
        _, height, width = (self.vae_factor * side for side in self.latent_shape())
        own_size = {"height": height, "width": width, "use_resolution_binning": False}
        return super().call_arguments(scheduler, grid) | own_size
