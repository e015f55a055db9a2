"""Qwen-Image: velocity prediction, timestep t, packed latents, guidance that preserves the norm of each token."""

from typing import ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import packed
from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter

NUM_TOKENS = 512  # the stock pipeline's default max_sequence_length
SAMPLE_SIZE = 128  # the stock pipeline's default height and width, in latent pixels


def length_preserving_rule(x_t: Tensor, t: Tensor, cond: Prediction, uncond: Prediction, scale: float) -> Prediction:
    """Classifier-free guidance rescaled to the norm of the conditional velocity in every packed token.

        w = u + s (c - u),    velocity = w |c| / |w|

    c and u are the conditional and unconditional velocities, s is the scale. A token in which w is zero stays zero.
    x_t: (B, C, H, W); t: (B,).
    Source: the stock pipeline.
    """
    conditional, unconditional = packed.pack(cond.velocity), packed.pack(uncond.velocity)
    velocity = unconditional + scale * (conditional - unconditional)
    tiny = torch.finfo(velocity.dtype).tiny
    velocity = velocity * (_length(conditional) / _length(velocity).clamp_min(tiny))
    return from_velocity(x_t, packed.unpack(velocity, x_t.shape[1:]), t)


def _length(tokens: Tensor) -> Tensor:
    """Euclidean norm of each token: (B, N, D) to (B, N, 1)."""
    return torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)


class QwenImageAdapter(StockAdapter):
    """Adapter of Qwen-Image.

    The unconditional prompt is "", as for every family: it corresponds to the stock pipeline with negative_prompt="".
    The pipeline's documentation suggests " " instead, which gives a different prompt in its chat template.
    """

    pipeline_class = QwenImagePipeline
    network_class = QwenImageTransformer2DModel
    vae_class = AutoencoderKLQwenImage  # a video autoencoder
    guidance_scale = 4.0
    num_inference_steps = 50
    guidance_rule = staticmethod(length_preserving_rule)
    unguided: ClassVar = {"true_cfg_scale": 1.0}
    token_limits = (("tokenizer", NUM_TOKENS),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    block_lists = ("transformer_blocks",)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** len(self.vae_config["temperal_downsample"])

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of unpacked latents; default: SAMPLE_SIZE."""
        size = self.latent_size(height, width, default=SAMPLE_SIZE, patch=2)
        return self.network_config["in_channels"] // 4, *size

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

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images in [-1, 1].

        This autoencoder clamps its output, so no gradient flows through clamped pixels.
        """
        config, latents = self.vae.config, latents.to(self.vae.device)
        mean, std = (latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        video = (latents * std + mean)[:, :, None]  # (B, C, 1, H, W), one frame
        return self.vae.decode(video, return_dict=False)[0][:, :, 0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's distribution for a one-frame video, (mode - latents_mean) / latents_std."""
        config = self.vae.config
        latents = self.vae.encode(images[:, :, None].to(self.vae.device)).latent_dist.mode()[:, :, 0]
        mean, std = (latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return (latents - mean) / std
