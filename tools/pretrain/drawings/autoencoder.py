"""Stage 1: an AutoencoderKL whose encoder computes the fixed latents, and whose decoder draws sharply from them."""

import copy
import time

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dpdmd.method.randomness import generator
from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import luma_chroma
from tools.pretrain.denoiser import learning_rate_factor, step_optimizers
from tools.pretrain.drawings.latents import LATENT_CHANNELS, drawing_latents, project
from tools.pretrain.muon import muon_and_adamw

MAX_NOISE = 0.25  # standard deviation; the latents have 1
MAX_MIX = 0.25
LOG_VARIANCE = -6.0  # of the encoder's posterior, a standard deviation of 0.05
RATES = (4e-3, 2e-3)  # of Muon and AdamW
EMA_DECAY = 0.99


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder: images (B, 3, 32, 32) to latents (B, 16, 4, 4)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def encoder_loss(encoder: nn.Module, batch_size: int, rng: torch.Generator) -> Tensor:
    """Mean squared error of the encoder's mean to the fixed latents, and of its log variance to LOG_VARIANCE.

    The images are drawings, mixed with others by up to a half and with noise of a standard deviation of up to 0.2.
    """
    images = catalogue().images
    first, second = (images[torch.randint(len(images), (batch_size,), generator=rng)] for _ in range(2))
    mix, noise = (high * torch.rand(batch_size, 1, 1, 1, generator=rng) for high in (0.5, 0.2))
    images = torch.lerp(first, second, mix) + noise * torch.randn(first.shape, generator=rng)
    mean, log_variance = encoder(images.to(memory_format=torch.channels_last)).chunk(2, 1)
    return F.mse_loss(mean, project(images)) + 0.01 * F.mse_loss(log_variance, torch.full_like(mean, LOG_VARIANCE))


def decoder_loss(decoder: nn.Module, batch_size: int, rng: torch.Generator) -> Tensor:
    """Error of the drawings that the decoder makes of imperfect latents: mean absolute, plus that of the oracle.

    A network's latents are a little off, so the decoder sees them with noise of a standard deviation of up to
    MAX_NOISE, and with up to MAX_MIX of another drawing's latents.
    """
    latents, images = drawing_latents(), catalogue().images
    rows, others = (torch.randint(len(images), (batch_size,), generator=rng) for _ in range(2))
    mix, noise = (high * torch.rand(batch_size, 1, 1, 1, generator=rng) for high in (MAX_MIX, MAX_NOISE))
    seen = torch.lerp(latents[rows], latents[others], mix)
    seen = seen + noise * torch.randn(seen.shape, generator=rng)
    made, wanted = decoder(seen.to(memory_format=torch.channels_last)), images[rows]
    error = luma_chroma(made) - luma_chroma(wanted)
    return F.l1_loss(made, wanted) + 20 * error.square().mean()


def fit(module: nn.Module, loss_of, num_steps: int, batch_size: int, seed: int, name: str, log=print) -> None:
    """Train `module` in place on loss_of(module, batch_size, generator), and leave it with averaged weights (EMA)."""
    module.to(memory_format=torch.channels_last)
    ema = copy.deepcopy(module).requires_grad_(False)
    optimizers = muon_and_adamw(module, *RATES, weight_decay=0.0)
    progress, started = tqdm(range(num_steps), desc=name), time.perf_counter()
    for step in progress:
        loss = loss_of(module, batch_size, generator(seed, f"pretrain_{name}", step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of the {name} is {loss.item()} at step {step}")
        loss.backward()
        factor = learning_rate_factor(step, num_steps)
        step_optimizers(module, optimizers, [rate * factor for rate in RATES])
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
        if step % 50 == 0 or step == num_steps - 1:
            progress.set_postfix(loss=f"{loss.item():.4f}")
            seconds = time.perf_counter() - started
            log({"stage": name, "step": step, "loss": loss.item(), "seconds": seconds})
    module.load_state_dict(ema.state_dict())


def train_autoencoder(num_steps: dict[str, int], batch_size: int, seed: int, log=print) -> AutoencoderKL:
    """Train the encoder and the decoder, each on its own. num_steps: of "encoder" and "decoder"."""
    torch.manual_seed(seed)
    vae = new_autoencoder()
    fit(vae.encoder, encoder_loss, num_steps["encoder"], batch_size, seed, "encoder", log)
    fit(vae.decoder, decoder_loss, num_steps["decoder"], batch_size, seed, "decoder", log)
    return vae.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def reconstructions(vae: AutoencoderKL) -> Tensor:
    """The drawings after encoding and decoding, (N, 3, 32, 32)."""
    chunks = catalogue().images.split(100)
    return torch.cat([vae.decode(vae.encode(images).latent_dist.mean).sample for images in chunks])
