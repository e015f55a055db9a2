"""Stage 3 of a built-in teacher: the denoising network, trained on captioned scenes through its family's adapter."""

import copy
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.method.grids import sample_times
from dpdmd.method.losses import denoising_loss
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator
from dpdmd.models.base import ModelAdapter
from dpdmd.store.tensors import write_tensors
from dpdmd.world.captions import all_captions, sample_captions
from dpdmd.world.scenes import Scenes, render, sample_scenes

EMPTY_CAPTION_PROB = 0.1
MIN_TIME = 1e-3  # the first timestep of a noise-predicting family
EMA_DECAY = 0.9995


@torch.no_grad()
def latent_cache(vae: AutoencoderKL, num_scenes: int, seed: int) -> tuple[Scenes, Tensor]:
    """Draw scenes and encode them to normalised latents (num_scenes, 4, 8, 8), the means of the posterior."""
    scenes = sample_scenes(num_scenes, generator(seed, "pretrain_scenes"))
    parts = []
    for start in tqdm(range(0, num_scenes, 500), desc="encoding scenes"):
        images = render(scenes[torch.arange(start, min(start + 500, num_scenes))])
        mean = vae.encode(images.to(memory_format=torch.channels_last)).latent_dist.mean
        parts.append((mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor)
    return scenes, torch.cat(parts).contiguous()


def learning_rate_factor(
    step: int, num_steps: int, *, warmup: int = 100, constant: float = 0.4, falls_from: float = 1.0
) -> float:
    """Factor of the learning rates: linear warm-up, 1 for the share `constant` of the steps, then a cosine decay from
    `falls_from` to zero."""
    if step < warmup:
        return (step + 1) / warmup
    start = constant * num_steps
    if step < start:
        return 1.0
    return falls_from * 0.5 * (1 + math.cos(math.pi * (step - start) / (num_steps - start)))


def new_optimizers(network: nn.Module, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Create Muon (orthogonalised momentum) for the matrices of the transformer blocks, AdamW for all other weights."""
    matrices, others = [], []
    for name, parameter in network.named_parameters():
        in_block = "transformer_blocks." in name and parameter.ndim == 2
        (matrices if in_block else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.99)),
    ]


def average_gradients(module: nn.Module, world_size: int) -> None:
    """Replace every gradient by its mean over the processes, in a single all-reduce."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / world_size).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def draw_batch(
    scenes: Scenes, latents: Tensor, batch_size: int, time_shift: float, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Draw latents x0 and noise eps (B, 4, 8, 8), times t (B,), and a new caption of each scene, some of them empty.

    time_shift: shift of the distribution of t towards noise; 1 = uniform.
    """
    rows = torch.randint(0, len(latents), (batch_size,), generator=rng)
    captions = sample_captions(scenes[rows], rng)
    is_empty = torch.rand(batch_size, generator=rng) < EMPTY_CAPTION_PROB
    t = sample_times(batch_size, rng, low=MIN_TIME, high=1.0, shift=time_shift)
    eps = torch.randn(batch_size, *latents.shape[1:], generator=rng)
    return latents[rows], eps, t, ["" if empty else text for text, empty in zip(captions, is_empty, strict=True)]


def step_optimizers(network: nn.Module, optimizers: list[torch.optim.Optimizer], rates: list[float]) -> None:
    """Clip the gradients to norm 1, take a step of each optimiser at its learning rate, and delete the gradients."""
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    network.zero_grad(set_to_none=True)


def train_denoiser(
    adapter: ModelAdapter,
    scenes: Scenes,
    latents: Tensor,
    *,
    num_steps: int,
    batch_size: int,
    learning_rates: tuple[float, float],
    time_shift: float,
    seed: int,
    start: dict[str, Tensor] | None = None,
    first_step: int = 0,
    snapshot: Path | None = None,
    name: str = "denoiser",
    log=print,
) -> nn.Module:
    """Train a denoising network for one round and return it with the moving average (EMA) of its weights.

        loss = mean (network(x_t, t, c) - target)^2,    in the network's own prediction space

    Every latent has its own t and a new caption of its scene, which is sometimes empty, for classifier-free guidance.
    With torch.distributed each process takes its share of the same batch, so the result does not depend on the number
    of processes. On two cores, two single-threaded processes are faster than one with two threads.

    learning_rates: of Muon and AdamW. time_shift: shift of the distribution of t towards noise; 1 = uniform.
    start, first_step: weights of the previous round, and the number of steps before this round.
    snapshot: file to which the EMA weights are written every 500 steps, to inspect a long run.
    name: the "stage" in the rows of the log.
    Raises FloatingPointError if the loss is not finite.
    """
    torch.manual_seed(seed)
    network = adapter.load_network().train()
    if start is not None:
        network.load_state_dict(start)
    ema = copy.deepcopy(network).requires_grad_(False)
    texts = ["", *all_captions()]
    row_of, conditions = {text: i for i, text in enumerate(texts)}, adapter.encode(texts)
    optimizers = new_optimizers(network, *learning_rates)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = slice(rank, None, world_size)
    progress = tqdm(range(num_steps), desc=name)
    started, running = time.perf_counter(), None
    for step in progress:
        rng = generator(seed, "pretrain_batch", first_step + step)
        x0, eps, t, captions = (part[mine] for part in draw_batch(scenes, latents, batch_size, time_shift, rng))
        cond = conditions[torch.tensor([row_of[caption] for caption in captions])]
        prediction = adapter.predict(network, add_noise(adapter.path, x0, eps, t), t, cond)
        loss = denoising_loss(prediction, x0, eps, adapter.prediction_space, adapter.path, t)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"pretraining loss is {loss.item()} at step {step}")
        loss.backward()
        if world_size > 1:
            average_gradients(network, world_size)
        factor = learning_rate_factor(step, num_steps)
        step_optimizers(network, optimizers, [rate * factor for rate in learning_rates])
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0 or step == num_steps - 1:
            progress.set_postfix(loss=f"{running:.4f}")
            seconds = time.perf_counter() - started
            log({"stage": name, "step": first_step + step, "loss": running, "seconds": seconds})
        if snapshot is not None and rank == 0 and step % 500 == 499:
            write_tensors(snapshot, ema.state_dict())
    return ema.eval()
