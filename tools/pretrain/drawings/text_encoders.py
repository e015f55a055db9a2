"""Stage 2: two CLIP text encoders whose states say what the drawings of a caption look like.

A full-size text encoder knows from its own training what a cactus is. These learn it by regression: the last NUM_TOKENS
states of a caption are, one for each hand, the principal components of the drawing by that hand. Half of the components
come from either encoder. The denoising network is trained afterwards, on what the encoders give.
"""

import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from dpdmd.method.randomness import generator
from dpdmd.world.drawings.captions import drawings_of
from dpdmd.world.drawings.catalogue import catalogue
from tools.pretrain.denoiser import learning_rate_factor, step_optimizers
from tools.pretrain.drawings.latents import drawing_latents
from tools.pretrain.muon import muon_and_adamw
from tools.pretrain.text_encoders import HIDDEN_SIZE, new_text_encoder, tokenize, word_tokenizer

MAX_CAPTION = 9  # start, up to seven words, end
RATES = (2e-2, 2e-3)  # of Muon and AdamW


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word tokenizer; after a caption follows a padding token for each hand at least."""
    return word_tokenizer(list(drawings_of()), MAX_CAPTION + len(catalogue().hands))


@cache
def target_states() -> Tensor:
    """What the states of each caption show, (C, 8, 128), in the order of `drawings_of()`.

    Row k shows the drawing by hand k, or the mean drawing of the thing if this hand drew none; of groups and of the
    empty prompt the means over things. Components are weighted by std^(-1/2), and have unit variance over all values.
    """
    known, latents = catalogue(), drawing_latents().flatten(1)
    _, scales, directions = torch.linalg.svd(latents - latents.mean(0), full_matrices=False)
    components = (latents - latents.mean(0)) @ directions[: 2 * HIDDEN_SIZE].T * scales[: 2 * HIDDEN_SIZE].rsqrt()
    components = components / components.std()
    of_thing = torch.stack([components[known.thing == thing].mean(0) for thing in range(len(known.things))])
    of_thing = of_thing[:, None].repeat(1, len(known.hands), 1)
    of_thing[known.thing, known.hand] = components
    states = [of_thing[known.thing[members].unique()].mean(0) for members in drawings_of().values()]
    return torch.stack(states)


def train_text_encoder(
    tokenizer: PreTrainedTokenizerFast, number: int, num_steps: int, batch_size: int, seed: int, log=print
) -> CLIPTextModelWithProjection:
    """Train encoder `number` = 1 or 2 on its half of the components, and return it frozen.

    loss = mean (last states of the layer that the pipeline reads - target)^2 + mean (pooled - mean target over hands)^2
    """
    torch.manual_seed(seed + number)
    encoder = new_text_encoder(tokenizer, num_layers=3, intermediate_size=512, num_heads=4)
    tokens = tokenize(tokenizer, list(drawings_of()))
    targets = target_states().chunk(2, 2)[number - 1]
    optimizers, started = muon_and_adamw(encoder, *RATES, weight_decay=0.0), time.perf_counter()
    for step in tqdm(range(num_steps), desc=f"text encoder {number}"):
        rng = generator(seed, f"pretrain_text_encoder_{number}", step)
        rows = torch.randperm(len(tokens), generator=rng)[:batch_size]
        output = encoder(tokens[rows], output_hidden_states=True)
        states = output.hidden_states[-2][:, -targets.shape[1] :]
        loss = F.mse_loss(states, targets[rows]) + F.mse_loss(output.text_embeds, targets[rows].mean(1))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of text encoder {number} is {loss.item()} at step {step}")
        loss.backward()
        factor = learning_rate_factor(step, num_steps)
        step_optimizers(encoder, optimizers, [rate * factor for rate in RATES])
        if step % 100 == 0 or step == num_steps - 1:
            seconds = time.perf_counter() - started
            log({"stage": f"text_encoder_{number}", "step": step, "loss": loss.item(), "seconds": seconds})
    return encoder.eval().requires_grad_(False)
