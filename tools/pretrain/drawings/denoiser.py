"""Stage 3: the denoising network, trained by regression on the velocity that an ideal network predicts."""

import copy
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.method.grids import sample_times
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator
from dpdmd.models.base import ModelAdapter
from dpdmd.store.tensors import read_metadata, read_tensors, write_tensors
from dpdmd.training.optimisers import optimizer_tensors
from dpdmd.world.drawings.captions import EMPTY, GROUP_PROB, WORDINGS, drawings_of
from dpdmd.world.drawings.catalogue import catalogue
from tools.pretrain.denoiser import EMPTY_CAPTION_PROB, MIN_TIME, learning_rate_factor, step_optimizers
from tools.pretrain.drawings.latents import drawing_latents
from tools.pretrain.drawings.posterior import exact_velocity
from tools.pretrain.muon import muon_and_adamw

EMA_DECAY = 0.998
SNAPSHOT_EVERY = 250  # steps
# At the full rate the loss falls fast, and rises again after some 1,600 steps.
SCHEDULE = {"constant": 0.36, "falls_from": 0.5}


def membership() -> Tensor:
    """Which drawings each caption may mean, (C, N) bool, in the order of `drawings_of()`."""
    return torch.stack([torch.isin(torch.arange(len(catalogue())), rows) for rows in drawings_of().values()])


def draw_prompts(batch_size: int, rng: torch.Generator) -> Tensor:
    """Captions (B,), as indices into `drawings_of()`: empty, a group or else a thing, in any wording."""
    known, captions = catalogue(), list(drawings_of())
    first_group = captions.index(EMPTY) + 1
    first_thing = first_group + len(known.groups) * len(WORDINGS)
    kind = torch.rand(batch_size, generator=rng)
    group = torch.randint(first_group, first_thing, (batch_size,), generator=rng)
    thing = torch.randint(first_thing, len(captions), (batch_size,), generator=rng)
    named = torch.where(kind < EMPTY_CAPTION_PROB + GROUP_PROB, group, thing)
    return torch.where(kind < EMPTY_CAPTION_PROB, captions.index(EMPTY), named)


def denoising_error(
    adapter: ModelAdapter,
    network: nn.Module,
    prompts: Tensor,
    cond,
    member: Tensor,
    time_shift: float,
    rng: torch.Generator,
) -> Tensor:
    """Squared errors (B,) of the predicted velocity to the exact one.

    prompts: (B,), rows of `cond` and of member (C, N).
    """
    path, latents = adapter.path, drawing_latents()
    eps = torch.randn(len(prompts), *latents.shape[1:], generator=rng)
    x0 = latents[torch.multinomial(member[prompts].float(), 1, generator=rng).squeeze(1)]
    t = sample_times(len(prompts), rng, low=MIN_TIME, high=1.0, shift=time_shift)
    x_t = add_noise(path, x0, eps, t)
    target = exact_velocity(x_t, path.alpha(t), path.sigma(t), latents, member[prompts])
    return (adapter.predict(network, x_t, t, cond[prompts]).velocity - target).square().mean((1, 2, 3))


def train_denoiser(
    adapter: ModelAdapter,
    *,
    num_steps: int,
    batch_size: int,
    learning_rates: tuple[float, float],
    time_shift: float,
    seed: int,
    snapshot: Path,
    log=print,
) -> nn.Module:
    """Train the network of `adapter` and return it with the moving average (EMA) of its weights.

    learning_rates: of Muon and AdamW. time_shift: shift of the distribution of t towards noise; 1 = uniform.
    snapshot: safetensors file with the state of the training, written every SNAPSHOT_EVERY steps; a run continues from
    it if it exists. Raises FloatingPointError if the loss is not finite.
    """
    torch.manual_seed(seed)
    network = adapter.load_network().train()
    ema = copy.deepcopy(network).requires_grad_(False)
    cond, member = adapter.encode(list(drawings_of())), membership()
    optimizers = muon_and_adamw(network, *learning_rates)
    first = _restore(snapshot, network, ema, optimizers) if snapshot.exists() else 0
    progress = tqdm(range(first, num_steps), desc="denoiser", initial=first, total=num_steps)
    started, running = time.perf_counter(), None
    for step in progress:
        rng = generator(seed, "pretrain_drawings", step)
        prompts = draw_prompts(batch_size, rng)
        loss = denoising_error(adapter, network, prompts, cond, member, time_shift, rng).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"pretraining loss is {loss.item()} at step {step}")
        loss.backward()
        factor = learning_rate_factor(step, num_steps, **SCHEDULE)
        step_optimizers(network, optimizers, [rate * factor for rate in learning_rates])
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == num_steps - 1:
            progress.set_postfix(loss=f"{running:.4f}")
            seconds = time.perf_counter() - started
            log({"stage": "transformer", "step": step, "loss": running, "seconds": seconds})
        if step % SNAPSHOT_EVERY == SNAPSHOT_EVERY - 1:
            _save(snapshot, step + 1, network, ema, optimizers)
    return ema.eval()


def _save(path: Path, step: int, network: nn.Module, ema: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    parameters = dict(network.named_parameters())
    tensors = {f"network/{name}": p for name, p in parameters.items()}
    tensors |= {f"ema/{name}": p for name, p in ema.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        tensors |= {f"{number}/{key}": value for key, value in optimizer_tensors(optimizer, parameters).items()}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path: Path, network: nn.Module, ema: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load what `_save` wrote, and return the number of steps taken."""
    parameters = dict(network.named_parameters())
    for name, tensor in read_tensors(path).items():
        owner, _, rest = name.partition("/")
        if owner in ("network", "ema"):
            (network if owner == "network" else ema).get_parameter(rest).data.copy_(tensor)
        else:
            key, _, parameter = rest.partition("/")
            optimizers[int(owner)].state[parameters[parameter]][key] = tensor
    return int(read_metadata(path)["step"])
