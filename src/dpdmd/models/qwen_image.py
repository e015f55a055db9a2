"""Qwen-Image: velocity prediction, timestep t, packed latents, guidance that preserves the norm of each token."""

from typing import ClassVar

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed
from dpdmd.models.lengths import guided_to_length
from dpdmd.models.one_frame import OneFrameAdapter

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length


def length_preserving_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: float) -> Prediction:
    """Classifier-free guidance rescaled to the norm of the conditional velocity in every packed token.

        w = u + s (c - u),    velocity = w |c| / |w|

    c and u are the conditional and unconditional velocities, s is the scale. A token in which w is zero stays zero.
    x_t: (B, C, H, W); t: (B,).
    Source: the stock pipeline.
    """
    velocity = guided_to_length(packed.pack(cond.velocity), packed.pack(uncond.velocity), scale)
    return from_velocity(x_t, packed.unpack(velocity, x_t.shape[1:]), t)


class QwenImageAdapter(OneFrameAdapter, packed.PackedAdapter):
    """Adapter of Qwen-Image.

    The unconditional prompt is "", as for every family: it corresponds to the stock pipeline with negative_prompt="".
    The pipeline's documentation suggests " " instead, which gives a different prompt in its chat template.
    """

    pipeline_class = QwenImagePipeline
    network_class = QwenImageTransformer2DModel
    guidance_scale = 4.0
    num_inference_steps = 50
    guidance_rule = staticmethod(length_preserving_rule)
    unguided: ClassVar = {"true_cfg_scale": 1.0}
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks",)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `prompt_mask` (B, L), 1 = token; shorter prompts are padded with zeros."""
        embeds, mask = self.texts.encode_prompt(prompt=list(prompts), max_sequence_length=NUM_TOKENS)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask  # None: no padding
        return Condition({"prompt_embeds": embeds.cpu().clone(), "prompt_mask": mask.cpu().clone()})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for NUM_TOKENS tokens, the most that the text encoder is given."""
        shape = num_prompts, NUM_TOKENS
        embeds = torch.zeros(*shape, self.network_config["joint_attention_dim"])
        return Condition({"prompt_embeds": embeds, "prompt_mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction."""
        height, width = x_t.shape[2:]
        tokens = network(
            hidden_states=packed.pack(x_t),
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_hidden_states_mask=cond.tensors["prompt_mask"],
            timestep=t,  # the network multiplies by 1000
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return from_velocity(x_t, packed.unpack(tokens, x_t.shape[1:]), t)
