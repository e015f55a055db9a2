"""Z-Image: negated velocity prediction, timestep 1 - t, images and prompts passed as lists."""

from typing import ClassVar

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter

IMAGE_SIZE = 1024  # the stock pipeline's default height and width in pixels, which no configuration changes
PATCH_SIZE = 2  # the patch size that the stock pipeline uses


class ZImageAdapter(StockAdapter):
    """Adapter of Z-Image.

    The stock pipeline defines guidance as c + g (c - u) = u + (g + 1) (c - u). Our guidance_scale is therefore g + 1,
    and g = 0 turns guidance off. The defaults are those of the stock pipeline, g = 5 and 50 steps. Z-Image-Turbo, which
    is already distilled, needs guidance_scale 1 and 8 steps instead.
    """

    pipeline_class = ZImagePipeline
    network_class = ZImageTransformer2DModel
    vae_class = AutoencoderKL
    guidance_scale = 6.0
    num_inference_steps = 50
    unguided: ClassVar = {"guidance_scale": 0.0}
    token_limits = (("tokenizer", 512),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("noise_refiner", "context_refiner", "layers")
    feature_lists = ("noise_refiner", "layers")  # pyright: ignore[reportAssignmentType]  # a property by default

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of the latents of an image in pixels; default: IMAGE_SIZE."""
        size = self.latent_size(height, width, default=IMAGE_SIZE // self.vae_factor, patch=PATCH_SIZE)
        return self.network_config["in_channels"], *size

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), true for tokens; L is the length of the longest prompt."""
        # The stock method modifies the list that it is given, hence the copy.
        embeds, _ = self.texts.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        mask = pad_sequence([torch.ones(len(tokens), dtype=torch.bool) for tokens in embeds], batch_first=True)
        return Condition({"prompt_embeds": pad_sequence(embeds, batch_first=True).cpu(), "mask": mask})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for the largest number of tokens that the text encoder is given."""
        shape = num_prompts, self.token_limits[0][1]
        embeds = torch.zeros(*shape, self.network_config["cap_feat_dim"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.bool)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's negated velocity to a prediction."""
        lengths = cond.mask("mask").sum(dim=1).tolist()
        tokens = [embeds[:n] for embeds, n in zip(cond.tensors["prompt_embeds"], lengths, strict=True)]
        out = network(list(x_t.unsqueeze(2)), 1 - t, tokens, return_dict=False)[0]
        return from_velocity(x_t, -torch.stack(out).squeeze(2), t)

    def picture_tokens(self, output: Tensor, x_t: Tensor, cond: Condition) -> Tensor:
        """The first tokens; padding and, in most blocks, the prompt's tokens follow them."""
        height, width = x_t.shape[2:]
        return output[:, : height * width // PATCH_SIZE**2]
