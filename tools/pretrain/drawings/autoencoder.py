"""Stage 1: an AutoencoderKL whose encoder computes the fixed latents, and whose decoder draws sharply from them."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

LOG_VARIANCE = -6.0  # of the encoder's posterior, a standard deviation of 0.05
RATES = (4e-3, 2e-3)  # of Muon and AdamW; half of them in the second round
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
        shift_factor=0.0,
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


@dataclass(frozen=True)
class Corruption:
    """What a decoder learns to ignore, since a network's latents are off.

    noise: largest standard deviation of noise; the latents have 1. mix: largest share of another drawing's latents.
    of_thing: how often the other drawing is one of the same thing; else it is any drawing.
    """

    noise: float
    mix: float
    of_thing: float


# Of the first round, in which the decoder learns to be sharp, and of the second.
CORRUPTIONS = {"decoder": Corruption(0.25, 0.25, 0.0), "decoder_2": Corruption(0.7, 0.4, 0.5)}


def decoder_loss(corruption: Corruption, decoder: nn.Module, batch_size: int, rng: torch.Generator) -> Tensor:
    """Error (`drawing_error`) of the drawings that the decoder makes of corrupted latents."""
    latents, images, thing = drawing_latents(), catalogue().images, catalogue().thing
    rows, others = (torch.randint(len(images), (batch_size,), generator=rng) for _ in range(2))
    mix, noise = (high * torch.rand(batch_size, 1, 1, 1, generator=rng) for high in (corruption.mix, corruption.noise))
    if corruption.of_thing:
        related = torch.multinomial((thing[rows, None] == thing).float(), 1, generator=rng).squeeze(1)
        others = torch.where(torch.rand(batch_size, generator=rng) < corruption.of_thing, related, others)
    seen = torch.lerp(latents[rows], latents[others], mix)
    seen = seen + noise * torch.randn(seen.shape, generator=rng)
    return drawing_error(decoder(seen.to(memory_format=torch.channels_last)), images[rows])


def drawing_error(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of images, plus 20 times the mean squared one in the oracle's luma and colour differences."""
    error = luma_chroma(made) - luma_chroma(wanted)
    return F.l1_loss(made, wanted) + 20 * error.square().mean()


def fit(
    module: nn.Module,
    loss_of: Callable[[nn.Module, int, torch.Generator], Tensor],
    num_steps: int,
    batch_size: int,
    seed: int,
    name: str,
    *,
    rates: tuple[float, float] = RATES,
    log=print,
) -> None:
    """Train `module` in place on loss_of(module, batch_size, generator), and leave it with averaged weights (EMA)."""
    module.to(memory_format=torch.channels_last)
    ema = copy.deepcopy(module).requires_grad_(False)
    optimizers = muon_and_adamw(module, *rates, weight_decay=0.0)
    progress, started = tqdm(range(num_steps), desc=name), time.perf_counter()
    for step in progress:
        loss = loss_of(module, batch_size, generator(seed, f"pretrain_{name}", step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of the {name} is {loss.item()} at step {step}")
        loss.backward()
        factor = learning_rate_factor(step, num_steps)
        step_optimizers(module, optimizers, [rate * factor for rate in rates])
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
        if step % 50 == 0 or step == num_steps - 1:
            progress.set_postfix(loss=f"{loss.item():.4f}")
            seconds = time.perf_counter() - started
            log({"stage": name, "step": step, "loss": loss.item(), "seconds": seconds})
    module.load_state_dict(ema.state_dict())


def train_autoencoder(num_steps: dict[str, int], batch_size: int, seed: int, log=print) -> AutoencoderKL:
    """Train the encoder and, in two rounds, the decoder. num_steps: of "encoder", "decoder" and "decoder_2"."""
    torch.manual_seed(seed)
    vae = new_autoencoder()
    fit(vae.encoder, encoder_loss, num_steps["encoder"], batch_size, seed, "encoder", log=log)
    for name, corruption in CORRUPTIONS.items():
        rates = RATES if name == "decoder" else (RATES[0] / 2, RATES[1] / 2)
        loss_of = partial(decoder_loss, corruption)
        fit(vae.decoder, loss_of, num_steps[name], batch_size, seed, name, rates=rates, log=log)
    return vae.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def reconstructions(vae: AutoencoderKL) -> Tensor:
    """The drawings after encoding and decoding, (N, 3, 32, 32)."""
    chunks = catalogue().images.split(100)
    return torch.cat([vae.decode(vae.encode(images).latent_dist.mean).sample for images in chunks])
