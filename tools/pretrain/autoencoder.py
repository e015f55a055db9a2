"""Stage 1 of a built-in teacher: an AutoencoderKL for scenes that reduces each side by a factor of 4."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dpdmd.world.scenes import render, sample_scenes

KL_WEIGHT = 2e-4


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder: images (B, 3, 32, 32) to latents (B, 4, 8, 8)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def autoencoder_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reconstruction error (mean absolute error plus 2 times mean squared error) and KL per latent value of a batch."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    reconstruction = vae.decode(posterior.mean + posterior.std * noise).sample
    error = F.l1_loss(reconstruction, images) + 2 * F.mse_loss(reconstruction, images)
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error, kl


def train_autoencoder(num_steps: int, batch_size: int, seed: int, log=print) -> AutoencoderKL:
    """Train on freshly rendered scenes, then set scaling_factor and shift_factor for zero mean and unit variance."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps, pct_start=0.05)
    progress = tqdm(range(num_steps), desc="autoencoder")
    for step in progress:
        images = render(sample_scenes(batch_size, generator)).to(memory_format=torch.channels_last)
        error, kl = autoencoder_loss(vae, images, generator)
        optimizer.zero_grad(set_to_none=True)
        (error + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == num_steps - 1:
            progress.set_postfix(error=f"{error.item():.4f}", kl=f"{kl.item():.2f}")
            log({"stage": "autoencoder", "step": step, "reconstruction": error.item(), "kl": kl.item()})
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(render(sample_scenes(2048, generator))).latent_dist.sample(generator)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return vae
