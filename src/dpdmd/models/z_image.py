"""Z-Image: flow prediction with the sign turned, time fed as 1 - t, one list entry per image and per prompt."""

from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dpdmd.denoiser import Condition
from dpdmd.grids import Grid
from dpdmd.guidance import linear_rule
from dpdmd.models import packed
from dpdmd.models.base import LatentShape
from dpdmd.models.parts import (
    exact_flow_scheduler,
    latent_size,
    load_config,
    load_network,
    load_part,
    load_text_pipeline,
    unscale,
)
from dpdmd.paths import FlowPath, Prediction, from_velocity
from dpdmd.rollout import StudentKind

IMAGE_SIZE = 1024  # the stock call's default height and width; no configuration says another
PATCH_SIZE = 2  # the one that the stock call patches with


class ZImageAdapter:
    """See `models.base.ModelAdapter`.

    The stock call combines c + g (c - u) = u + (g + 1) (c - u): our scale is its scale plus 1, and its "off" is 0.
    Defaults are those of the stock call, g = 5 and 50 steps. Z-Image-Turbo, distilled already, wants 1 and 8 instead.
    """

    pipeline_class = ZImagePipeline
    network_class = ZImageTransformer2DModel
    network_name = "transformer"
    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 6.0
    num_inference_steps = 50
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance = None
    token_limits = (("tokenizer", 512),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("noise_refiner", "context_refiner", "layers")

    def __init__(self, source: str):
        self.source = source
        self.network_config = load_config(ZImageTransformer2DModel, source, "transformer")
        self.vae_config = load_config(AutoencoderKL, source, "vae")
        self.scheduler_config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")

    @cached_property
    def texts(self) -> ZImagePipeline:
        """Tokenizer and text encoder."""
        return load_text_pipeline(ZImagePipeline, self.source, "transformer", "vae")

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return load_part(AutoencoderKL, self.source, "vae")

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W); both sides must be divisible by the autoencoder's factor times the patch size."""
        factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        size = latent_size(self.source, height or IMAGE_SIZE, width or IMAGE_SIZE, factor=factor, patch=PATCH_SIZE)
        return self.network_config["in_channels"], *size

    def load_network(self) -> nn.Module:
        """The pretrained transformer in fp32."""
        return load_network(ZImageTransformer2DModel, self.source, "transformer")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D), L tokens of the longest prompt, and `mask` (B, L), true where there is a token."""
        # The stock method writes into the list it is given.
        embeds, _ = self.texts.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        mask = pad_sequence([torch.ones(len(tokens), dtype=torch.bool) for tokens in embeds], batch_first=True)
        return Condition({"prompt_embeds": pad_sequence(embeds, batch_first=True).cpu(), "mask": mask})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The transformer's velocity at x_t (B, C, H, W), t (B,), as (x0, eps) in fp32."""
        lengths = cond.tensors["mask"].sum(dim=1).tolist()
        tokens = [embeds[:n] for embeds, n in zip(cond.tensors["prompt_embeds"], lengths, strict=True)]
        out = network(list(x_t.unsqueeze(2)), 1 - t, tokens, return_dict=False)[0]
        return from_velocity(x_t, -torch.stack(out).squeeze(2), t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], not clamped."""
        return self.vae.decode(unscale(latents, self.vae), return_dict=False)[0]

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock pipeline's, which is the uniform one up to fp32 rounding."""
        return packed.stock_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def uniform_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """Uniform, then the scheduler's shift, fixed or for this size."""
        return packed.uniform_grid(self.scheduler_config, num_steps, latent_shape or self.latent_shape())

    def student_scheduler(self, kind: StudentKind) -> FlowMatchEulerDiscreteScheduler:
        """Takes `sigmas=` as they stand."""
        return exact_flow_scheduler(self.scheduler_config, kind)

    def call_arguments(self, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The student's sigmas, no guidance, which here is 0."""
        return {"sigmas": list(grid.times[:-1]), "guidance_scale": 0.0}
