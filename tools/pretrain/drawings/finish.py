"""Stage 4: the decoder learns to draw from the latents that the trained network makes.

Their errors are no noise: a network this small blends a drawing with others of its thing. The drawing that a sample is
nearest to, among those of its prompt, is what the decoder shall make of it.
"""

from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dpdmd.method.guidance import Guidance
from dpdmd.method.randomness import generator
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import ModelAdapter, network_denoiser
from dpdmd.world.drawings.captions import EMPTY, caption, drawings_of
from dpdmd.world.drawings.catalogue import catalogue
from tools.pretrain.drawings.autoencoder import CORRUPTIONS, RATES, decoder_loss, drawing_error, fit
from tools.pretrain.drawings.latents import drawing_latents

GUIDANCE_SCALES = (1.5, 2.5, 3.5)
# The samples of each thing that a round learns from.
SAMPLES = {"decoder_3": range(6), "decoder_4": range(6, 18)}
BATCH_SIZE = 53  # a third of the things


@torch.no_grad()
def samples(adapter: ModelAdapter, network: nn.Module, numbers: range, num_steps: int, seed: int) -> Tensor:
    """Latents that the network makes of every thing's caption, (S, T, 16, 4, 4), at GUIDANCE_SCALES in turn.

    numbers: of the S samples; each number has noise of its own. num_steps: of the teacher.
    """
    captions = [caption(name) for name in catalogue().things]
    cond, uncond = adapter.encode(captions), adapter.encode([EMPTY])
    denoise = network_denoiser(adapter, network)
    made = []
    for number in numbers:
        guidance = Guidance(GUIDANCE_SCALES[number % len(GUIDANCE_SCALES)])
        teacher = GuidedTeacher(denoise, adapter.path, adapter.stock_grid(num_steps), guidance)
        noise = torch.randn(len(captions), *drawing_latents().shape[1:], generator=generator(seed, "finish", number))
        parts = torch.arange(len(captions)).split(BATCH_SIZE)
        made.append(torch.cat([teacher.rollout(noise[p], cond[p], uncond[torch.zeros_like(p)]) for p in parts]))
    return torch.stack(made)


def nearest_own(made: Tensor) -> Tensor:
    """For latents (S, T, ...) the indices (S, T) of the nearest drawings of their things."""
    distance = torch.cdist(made.flatten(2), drawing_latents().flatten(1))
    own = torch.stack(
        [torch.isin(torch.arange(len(catalogue())), drawings_of()[caption(n)]) for n in catalogue().things]
    )
    return distance.masked_fill(~own, torch.inf).argmin(2)


def finished_loss(made: Tensor, meant: Tensor, decoder: nn.Module, batch_size: int, rng: torch.Generator) -> Tensor:
    """The decoder's error, half of it on the network's latents (S, 16, 4, 4), half on corrupted ones as before."""
    rows = torch.randint(len(made), (batch_size // 2,), generator=rng)
    on_samples = drawing_error(
        decoder(made[rows].to(memory_format=torch.channels_last)), catalogue().images[meant[rows]]
    )
    return on_samples + decoder_loss(CORRUPTIONS["decoder_2"], decoder, batch_size - batch_size // 2, rng)


def finish_decoder(
    vae: AutoencoderKL,
    adapter: ModelAdapter,
    network: nn.Module,
    *,
    num_inference_steps: int,
    num_steps: dict[str, int],
    batch_size: int,
    seed: int,
    log=print,
) -> AutoencoderKL:
    """Train the decoder of `vae` in place in the rounds of SAMPLES, and return it. num_steps: of each round."""
    rates = (RATES[0] / 2, RATES[1] / 2)
    vae.requires_grad_(True).train()
    for name, numbers in SAMPLES.items():
        made = samples(adapter, network, numbers, num_inference_steps, seed)
        loss_of = partial(finished_loss, made.flatten(0, 1), nearest_own(made).flatten())
        fit(vae.decoder, loss_of, num_steps[name], batch_size, seed, name, rates=rates, log=log)
    return vae.eval().to(memory_format=torch.contiguous_format)
