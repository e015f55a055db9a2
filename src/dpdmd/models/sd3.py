"""Stable Diffusion 3 and 3.5: velocity prediction, timestep 1000 t, plain guidance, latents passed unpacked."""

from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import flow_scheduler
from dpdmd.models.base import LatentShape
from dpdmd.models.folding import FoldedJointAttention
from dpdmd.models.parts import local_folder, read_index
from dpdmd.models.pipeline_files import parts_of, weight_files
from dpdmd.models.stock import StockAdapter
from dpdmd.store.errors import InputError, reading

NUM_CLIP_TOKENS = 77
T5_NORM = "encoder.final_layer_norm.weight"
NUM_T5_TOKENS = 256  # the stock pipeline's default max_sequence_length


class SD3Adapter(StockAdapter):
    """Adapter of Stable Diffusion 3 and 3.5, which folds the tokens of a missing or silent T5.

    If the T5 encoder is missing, or if its final norm is zero, its 256 tokens are all zero. They are folded into one
    token, which is exact (`models.folding`).
    """

    pipeline_class = StableDiffusion3Pipeline
    network_class = SD3Transformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 3.5
    num_inference_steps = 30
    token_limits = (("tokenizer", None), ("tokenizer_2", None), ("tokenizer_3", NUM_T5_TOKENS))
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks",)
    pipeline_gives_sigmas = False

    def __init__(self, source: str):
        super().__init__(source)
        if self.scheduler_config.get("use_dynamic_shifting"):
            raise InputError(
                f"{source}: SD3 needs a scheduler with a fixed shift; use_dynamic_shifting is not supported"
            )

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with only its tokenizers and text encoders, of which a silent T5 need not be run."""
        pipeline = super().texts
        if self._num_folded_tokens > 1:
            pipeline.text_encoder_3 = None  # whose tokens the stock pipeline makes zero
        if pipeline.text_encoder_3 is None:
            # For the tokens of a missing T5 it asks its network how wide they are.
            pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**self.network_config))
        return pipeline

    @cached_property
    def _num_folded_tokens(self) -> int:
        """How many equal tokens the last token of `encode` stands for: 256 if T5 is missing or silent, else 1."""
        name = "text_encoder_3"
        if name not in parts_of(read_index(self.source)):
            return NUM_T5_TOKENS
        for file in weight_files(local_folder(self.source) / name, self.source, name)[0]:
            with reading(self.source, f"{name} weights"), safe_open(file, framework="pt") as weights:
                if T5_NORM in weights.keys():  # noqa: SIM118 (not a dictionary)
                    return 1 if weights.get_tensor(T5_NORM).any() else NUM_T5_TOKENS
        return 1

    def prepared(self, network: nn.Module) -> nn.Module:
        """With attention over folded tokens."""
        cast("Any", network).set_attn_processor(FoldedJointAttention(self._num_folded_tokens))
        return network

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `pooled_prompt_embeds` (B, P)."""
        embeds, _, pooled, _ = self.texts.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=NUM_T5_TOKENS,
        )
        embeds = embeds[:, : embeds.shape[1] - self._num_folded_tokens + 1]
        return Condition({"prompt_embeds": embeds.cpu().clone(), "pooled_prompt_embeds": pooled.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the tokens of CLIP and T5 (77 + 256), and for CLIP's pooled embedding."""
        config, length = self.network_config, NUM_CLIP_TOKENS + NUM_T5_TOKENS
        return Condition(
            {
                "prompt_embeds": torch.zeros(num_prompts, length, config["joint_attention_dim"]),
                "pooled_prompt_embeds": torch.zeros(num_prompts, config["pooled_projection_dim"]),
            }
        )

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction."""
        velocity = network(
            hidden_states=x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            pooled_projections=cond.tensors["pooled_prompt_embeds"],
            timestep=1000 * t,
            return_dict=False,
        )[0]
        return from_velocity(x_t, velocity, t)

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The default grid of the saved scheduler. The uniform grid replaces that of a solver, which is nearly it."""
        if self.replaced_solver:
            return self.uniform_grid(num_steps)
        return flow_scheduler.stock_grid(
            self.scheduler_config, num_steps, self.source, pipeline_gives_sigmas=self.pipeline_gives_sigmas
        )
