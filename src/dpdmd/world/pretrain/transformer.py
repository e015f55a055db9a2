"""Stage 3 of the built-in teacher: a small SD3Transformer2DModel trained by flow matching on captioned scenes."""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.files import write_tensors
from dpdmd.models.folding import FoldedJointAttention
from dpdmd.randomness import generator
from dpdmd.world.captions import all_captions, sample_captions
from dpdmd.world.pretrain.text_encoders import HIDDEN_SIZE, tokenize
from dpdmd.world.scenes import Scenes, render, sample_scenes

NUM_T5_TOKENS = 256  # the stock pipeline's default max_sequence_length; without T5 all of them are zeros
EMPTY_CAPTION_PROB = 0.1
TIME_SHIFT = 1.5
EMA_DECAY = 0.9995


@dataclass(frozen=True)
class EmbeddingTable:
    """Every caption's conditioning once: `tokens` (V, 10 + 1, D), the last one folded zero token, `pooled` (V, D)."""

    index: dict[str, int]
    tokens: Tensor
    pooled: Tensor


def new_transformer() -> SD3Transformer2DModel:
    """Untrained MMDiT: 16 image tokens (8 x 8 latents, patch 2), width 128, four blocks."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * HIDDEN_SIZE,
        caption_projection_dim=128,
        pooled_projection_dim=2 * HIDDEN_SIZE,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


@torch.no_grad()
def embedding_table(tokenizer, encoders) -> EmbeddingTable:
    """Encode the empty prompt and all captions as StableDiffusion3Pipeline does."""
    texts = ["", *all_captions()]
    ids = tokenize(tokenizer, texts)
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    tokens = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return EmbeddingTable({text: i for i, text in enumerate(texts)}, tokens, pooled)


@torch.no_grad()
def latent_cache(vae: AutoencoderKL, num_scenes: int, seed: int) -> tuple[Scenes, Tensor]:
    """Scenes and their normalised latents (num_scenes, 4, 8, 8), posterior means."""
    scenes = sample_scenes(num_scenes, generator(seed, "pretrain_scenes"))
    parts = []
    for start in tqdm(range(0, num_scenes, 500), desc="encoding scenes"):
        images = render(scenes[torch.arange(start, min(start + 500, num_scenes))])
        mean = vae.encode(images.to(memory_format=torch.channels_last)).latent_dist.mean
        parts.append((mean - vae.config.shift_factor) * vae.config.scaling_factor)
    return scenes, torch.cat(parts).contiguous()


def sample_times(batch_size: int, rng: torch.Generator) -> Tensor:
    """Stratified t in (0, 1): uniform u, then t = s u / (1 + (s - 1) u) with s = TIME_SHIFT, toward noise."""
    u = (torch.randperm(batch_size, generator=rng) + torch.rand(batch_size, generator=rng)) / batch_size
    return TIME_SHIFT * u / (1 + (TIME_SHIFT - 1) * u)


def learning_rate_factor(step: int, num_steps: int, warmup: int = 100) -> float:
    """Linear warm-up, constant, then a cosine to zero over the last 60 %."""
    if step < warmup:
        return (step + 1) / warmup
    start = 0.4 * num_steps
    return 1.0 if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / (num_steps - start)))


def new_optimizers(transformer: nn.Module, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (momentum orthogonalised) for the matrices of the blocks, AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in transformer.named_parameters():
        in_block = name.startswith("transformer_blocks.") and parameter.ndim == 2
        (matrices if in_block else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.99)),
    ]


def draw_batch(scenes: Scenes, latents: Tensor, table: EmbeddingTable, batch_size: int, rng: torch.Generator):
    """Latents with a fresh caption each, some captions emptied for classifier-free guidance."""
    rows = torch.randint(0, len(latents), (batch_size,), generator=rng)
    texts = sample_captions(scenes[rows], rng)
    empty = torch.rand(batch_size, generator=rng) < EMPTY_CAPTION_PROB
    columns = torch.tensor([0 if gone else table.index[text] for text, gone in zip(texts, empty, strict=True)])
    return latents[rows], table.tokens[columns], table.pooled[columns]


def average_gradients(module: nn.Module, world_size: int) -> None:
    """Replace every gradient by its mean over the processes, as one flat tensor."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / world_size).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def train_transformer(
    scenes: Scenes,
    latents: Tensor,
    table: EmbeddingTable,
    *,
    num_steps: int,
    batch_size: int,
    learning_rates: tuple[float, float],
    seed: int,
    start: dict[str, Tensor] | None = None,
    first_step: int = 0,
    snapshot: Path | None = None,
    log=print,
) -> SD3Transformer2DModel:
    """One round of flow matching: mean (v(x_t, t, c) - (eps - x0))^2. Returns the EMA weights.

    `start`: weights of the round before, whose steps end at `first_step`.

    Under torch.distributed every process takes its share of the same batch, so the run does not depend on how many
    there are: on two cores two single-threaded processes are faster than one with two threads.

    `learning_rates`: Muon's and AdamW's. `snapshot`: where to write the EMA weights every 500 steps, so that a long run
    can be looked at.
    """
    torch.manual_seed(seed)
    transformer = new_transformer()
    if start is not None:
        transformer.load_state_dict(start)
    transformer.set_attn_processor(FoldedJointAttention(NUM_T5_TOKENS))
    ema = copy.deepcopy(transformer).requires_grad_(False)
    optimizers = new_optimizers(transformer, *learning_rates)
    progress = tqdm(range(num_steps), desc="transformer")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started, running = time.perf_counter(), None
    for step in progress:
        rng = generator(seed, "pretrain_batch", first_step + step)
        x0, tokens, pooled = draw_batch(scenes, latents, table, batch_size, rng)
        t = sample_times(batch_size, rng)
        eps = torch.randn(x0.shape, generator=rng)
        sigma = t[:, None, None, None]
        x_t = (1 - sigma) * x0 + sigma * eps
        mine = slice(rank, None, world_size)
        velocity = transformer(x_t[mine], tokens[mine], pooled[mine], 1000 * t[mine], return_dict=False)[0]
        loss = (velocity - (eps - x0)[mine]).square().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"pretraining loss is {loss.item()} at step {step}")
        loss.backward()
        if world_size > 1:
            average_gradients(transformer, world_size)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer, learning_rate in zip(optimizers, learning_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_factor(step, num_steps)
            optimizer.step()
        transformer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(transformer.parameters()), 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0 or step == num_steps - 1:
            progress.set_postfix(loss=f"{running:.4f}")
            log(
                {
                    "stage": "transformer",
                    "step": first_step + step,
                    "loss": running,
                    "seconds": time.perf_counter() - started,
                }
            )
        if snapshot is not None and rank == 0 and step % 500 == 499:
            write_tensors(snapshot, ema.state_dict())
    return ema.eval()
