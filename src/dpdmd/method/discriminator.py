"""The discriminator of DMD2 (arXiv 2405.14867, sec. 4.3): a light head on what a denoiser's blocks make of x_tau."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpdmd.method.denoiser import Condition
from dpdmd.method.randomness import generator
from dpdmd.method.roles import Role

WIDTH = 64


@dataclass(frozen=True)
class DiscriminatorSettings:
    """What a run's discriminator is, and what it takes for real.

    features: whose blocks it sees; the loss never trains that role. learning_rate: of its head. real: "teacher", the
    guided teacher's samples of the training prompts, or a folder of images; num_real: how many samples of the teacher.
    """

    features: Role
    learning_rate: float
    real: str
    num_real: int


# (x_tau, tau, cond) -> what each of the chosen blocks makes of it, (B, N, D): N places of the picture.
Features = Callable[[Tensor, Tensor, Condition], list[Tensor]]


class Head(nn.Module):
    """From features to one logit per sample, above 0 for "real".

    Per block a verdict at every place, D numbers -> 64 -> 1, from features of zero mean and unit variance; the logit is
    the mean over places and blocks. So the head is small, fits any size and shape of picture, and its gradient goes to
    all places alike; that a verdict can be about the whole picture is the work of the blocks' attention. It starts
    undecided, at 0 for everything.
    """

    def __init__(self, sizes: list[int], *, seed: int = 0):
        """`sizes`: D of every block; `seed`: of the first layers."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "discriminator").initial_seed())
            self.branches = nn.ModuleList(map(_branch, sizes))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits (B,) in fp32 of features (B, N, D), one per block."""
        verdicts = [branch(f.float()).mean(dim=(1, 2)) for branch, f in zip(self.branches, features, strict=True)]
        return torch.stack(verdicts).mean(dim=0)


def _branch(size: int) -> nn.Sequential:
    first, last = nn.Linear(size, WIDTH), nn.Linear(WIDTH, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(size, elementwise_affine=False), first, nn.SiLU(), last)


@dataclass(frozen=True)
class Discriminator:
    """(x_tau, tau, cond) -> logits (B,). Of its two parts the head alone is ever trained as such.

    differentiable: what to enter for a call and a derivative of it by x_tau.
    """

    features: Features
    head: Head
    differentiable: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, x_tau: Tensor, tau: Tensor, cond: Condition) -> Tensor:
        return self.head(self.features(x_tau, tau, cond))


def default_blocks(number: int) -> tuple[int, ...]:
    """A quarter, a half and three quarters of the way through `number` blocks."""
    return tuple(sorted({quarter * number // 4 for quarter in (1, 2, 3)}))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator pays for mistakes: mean softplus(-real) + mean softplus(fake), 2 log 2 when undecided.

    real, fake: logits (B,), above 0 for "real" (arXiv 1406.2661, sec. 3; arXiv 2405.14867, sec. 4.3).
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What the student pays for samples that are not taken for real: mean softplus(-fake) = mean -log D.

    fake: their logits (B,). Source as `discriminator_loss`, the non-saturating form.
    """
    return F.softplus(-fake).mean()


class _Enough(Exception):
    """Leaves a network after the last block that is listened to."""


def block_outputs(call: Callable[[], Any], blocks: list[nn.Module], *, stop: bool) -> list[Any]:
    """What each of `blocks` returns while `call` calls the network that they are part of.

    stop: leave the network when all have returned. Only where no graph is recorded and no block's parameters are
    gathered for the call: checkpointing and FSDP2 count on calls that end.
    """
    outputs: dict[int, Any] = {}

    def listener(index: int) -> Callable:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            outputs[index] = output
            if stop and len(outputs) == len(blocks):
                raise _Enough

        return listen

    handles = [block.register_forward_hook(listener(i)) for i, block in enumerate(blocks)]
    try:
        call()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[i] for i in range(len(blocks))]
