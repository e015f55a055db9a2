"""Qwen-Image's autoencoder, which is one of videos: an image is a video of one frame."""

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from dpdmd.models.stock import StockAdapter


class OneFrameAdapter(StockAdapter):
    """An adapter with this autoencoder; its latents are normalised for each channel."""

    vae_class = AutoencoderKLQwenImage

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** len(self.vae_config["temperal_downsample"])

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
