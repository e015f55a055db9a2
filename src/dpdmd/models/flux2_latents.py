"""FLUX.2's latents: channels hold 2 x 2 patches of the autoencoder's, normalised by its running statistics."""

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor
from torch.nn import functional as F

from dpdmd.models.base import LatentShape
from dpdmd.models.stock import StockAdapter

IMAGE_SIZE = 1024  # the stock pipelines' default height and width in pixels


class Flux2LatentsAdapter(StockAdapter):
    """An adapter with these latents."""

    vae_class = AutoencoderKLFlux2

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along each side, patches included."""
        return 2 * super().vae_factor

    @property
    def variance_floor(self) -> float:
        """What is added to the running variance."""
        return self.vae.config.batch_norm_eps

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of latents whose channels are patches; default: IMAGE_SIZE."""
        size = self.latent_size(height, width, default=IMAGE_SIZE // self.vae_factor, patch=1)
        return self.network_config["in_channels"], *size

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents times standard deviation plus mean of each channel."""
        mean, std = self._statistics()
        patches = latents.to(self.vae.device) * std + mean
        return self.vae.decode(F.pixel_shuffle(patches, 2), return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's distribution in patches, normalised."""
        mean, std = self._statistics()
        latents = self.vae.encode(images.to(self.vae.device)).latent_dist.mode()
        return (F.pixel_unshuffle(latents, 2) - mean) / std

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C, 1, 1) of patches."""
        statistics = self.vae.bn
        std = (statistics.running_var + self.variance_floor).sqrt()
        return statistics.running_mean[:, None, None], std[:, None, None]
