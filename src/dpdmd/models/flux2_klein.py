"""FLUX.2-klein: velocity prediction, timestep t, a time shift that depends on the number of steps."""

from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models.base import LatentShape
from dpdmd.models.flux2_latents import Flux2LatentsAdapter
from dpdmd.models.parts import read_index

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length, to which it pads every prompt
DISTILLED_STEPS = 4  # what FLUX.2-klein itself, which is distilled, is published for


class Flux2KleinAdapter(Flux2LatentsAdapter):
    """Adapter of FLUX.2-klein-base, and of FLUX.2-klein, whose pipeline is marked as distilled and takes no guidance.

    The stock pipeline's shift depends on the number of steps and, with a jump at 4,300 tokens, on the size. Student and
    teacher of different numbers of steps therefore have different shifts; `student.shift` sets the student's. Exports
    are marked as distilled, so that the stock pipeline never guides them.
    """

    pipeline_class = Flux2KleinPipeline
    network_class = Flux2Transformer2DModel
    guidance_scale = 4.0
    num_inference_steps = 50
    exported_options: ClassVar = {"is_distilled": True}
    token_limits = (("tokenizer", NUM_TOKENS),)
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, source: str):
        super().__init__(source)
        if read_index(source).get("is_distilled"):
            self.guidance_scale, self.num_inference_steps = 1.0, DISTILLED_STEPS
        # `to_out` is a layer in single blocks and a list in the others, so that its name alone does not do.
        singles = range(self.network_config["num_single_layers"])
        self.lora_targets = (
            *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            "to_qkv_mlp_proj",
            *(f"single_transformer_blocks.{i}.attn.to_out" for i in singles),
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, 512, D), three layers of the text encoder; the network sees the padding as well."""
        embeds, _ = self.texts.encode_prompt(list(prompts), max_sequence_length=NUM_TOKENS)
        return Condition({"prompt_embeds": embeds.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the 512 tokens."""
        size = self.network_config["joint_attention_dim"]
        return Condition({"prompt_embeds": torch.zeros(num_prompts, NUM_TOKENS, size)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction. Positions are (time, row, column, place in the text)."""
        embeds, (height, width) = cond.tensors["prompt_embeds"], x_t.shape[2:]
        tokens = network(
            hidden_states=x_t.flatten(2).transpose(1, 2),
            encoder_hidden_states=embeds,
            timestep=t,  # the network multiplies by 1000
            guidance=None,
            txt_ids=_positions((1, 1, 1, embeds.shape[1]), x_t.device),
            img_ids=_positions((1, height, width, 1), x_t.device),
            return_dict=False,
        )[0]
        return from_velocity(x_t, tokens.transpose(1, 2).unflatten(2, (height, width)), t)

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The last tokens: single blocks return those of the prompt before them."""
        return super().picture_tokens(output, x_t, cond)[:, -x_t.shape[2:].numel() :]

    def dynamic_shift(self, num_steps: int, latent_shape: LatentShape) -> float:
        """mu by the number of tokens, and up to 4,300 of them by the number of steps."""
        _, height, width = latent_shape
        return compute_empirical_mu(height * width, num_steps)


def _positions(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """All positions (N, 4) in a box of these sizes."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
