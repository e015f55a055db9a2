"""The micro-batches of a run: prompts in a fixed order, noise, and generators for all other randomness.

Every draw is a function of (seed, role, step, update, micro-batch of all processes). No random state is carried over,
so a resumed run draws what an uninterrupted one would, and two objectives with one seed see the same prompts and noise.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, Encode
from dpdmd.method.devices import to_device
from dpdmd.method.randomness import generator, image_noise
from dpdmd.method.roles import Role
from dpdmd.store.digests import key_of


@dataclass(frozen=True)
class MicroBatch:
    """`noise` (B, C, H, W), the prompts' `cond` and `uncond` (B each); `rng(stream)`: a fresh generator for a stream.

    number: micro-batches of the role that this process had before; processes have equal ones at the same time. levels:
    (B,) in [0, 1), stratified over the micro-batch and over the whole update on all processes; they decide at which
    step each sample is trained. noise_seeds: the seed of each noise (`image_noise`) if it belongs to a fixed
    pair of prompt and noise. negatives: the prompts' negative prompts, of which `uncond` is made. size: which of the
    plan's sizes the noise has.
    """

    prompts: list[str]
    noise: Tensor
    cond: Condition
    uncond: Condition
    rng: Callable[[str], torch.Generator]
    levels: Tensor
    number: int = 0
    noise_seeds: list[int] | None = None
    negatives: tuple[str, ...] = ()
    size: int = 0


def prompts_digest(prompts: list[str], negatives: list[str] | None = None) -> str:
    """SHA-256 of the prompts in their order, one per line as in version 0.1.0, whose runs can so be resumed.

    negatives: those of the prompts, if there are any.
    """
    digest = key_of("\n".join(prompts))
    return key_of(digest, "\n".join(negatives)) if negatives and any(negatives) else digest


def stratified_levels(size: int, number: int, count: int, of_update: torch.Generator, own: torch.Generator) -> Tensor:
    """u (size,) in [0, 1) of the samples of micro-batch `number` of `count`: u = (r + v) / size.

    r: a permutation of 0 ... size - 1 from the micro-batch's `own` generator. v = (p + w) / count, p its place in a
    permutation of the `count` micro-batches from the generator `of_update`, which is the same for all of them, w
    uniform. So each of `size` equal slices of [0, 1) holds one sample of a micro-batch, and each of size * count slices
    one of the update.
    """
    places = torch.randperm(count, generator=of_update)
    v = (places[number] + torch.rand((), generator=own)) / count
    return (torch.randperm(size, generator=own) + v) / size


class EncodedPrompts:
    """The prompts of a run, their negative prompts, and the conditioning of both.

    negatives: of each prompt; default: "", which is the unconditional prompt.
    """

    def __init__(self, prompts: list[str], encode: Encode, negatives: list[str] | None = None):
        """Raises ValueError unless there are as many negative prompts as prompts."""
        self.prompts, self.encode = prompts, encode
        self.negatives = negatives or [""] * len(prompts)
        if len(self.negatives) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many negative prompts, got {len(self.negatives)}")
        self.digest = prompts_digest(prompts, self.negatives)
        self._shared = encode(self.negatives[:1], negative=True) if len(set(self.negatives)) == 1 else None

    def __len__(self) -> int:
        return len(self.prompts)

    def cond(self, indices: Tensor) -> Condition:
        """Conditioning of the prompts at `indices` (B,)."""
        return self.encode([self.prompts[i] for i in indices.tolist()])

    def uncond(self, indices: Tensor, device: torch.device) -> Condition:
        """Conditioning of their negative prompts on `device`: what the teacher is guided away from."""
        if self._shared is not None:
            return self._shared.to(device).expand(len(indices))
        return self.encode([self.negatives[i] for i in indices.tolist()], negative=True).to(device)


@lru_cache(maxsize=8)
def _epoch_order(num_prompts: int, seed: int, stream: str, epoch: int) -> Tensor:
    return torch.randperm(num_prompts, generator=generator(seed, stream, epoch))


def prompt_indices(positions: Iterable[int], num_prompts: int, *, seed: int, stream: str) -> Tensor:
    """Indices of the prompts at `positions` of the endless sequence `stream`: one shuffled pass after another."""
    return torch.tensor(
        [int(_epoch_order(num_prompts, seed, stream, p // num_prompts)[p % num_prompts]) for p in positions]
    )


@dataclass(frozen=True)
class BatchSource:
    """The micro-batches of a run.

    The prompts of one update are a slice of one sequence per role, cut by micro-batch and rank, so that they do not
    depend on how they are spread over processes and micro-batches. The same holds for everything random: two processes
    draw what one draws in twice as many micro-batches.

    num_pairs: size of a fixed pool of pairs of prompt and noise for the student, each taken once per pass; its prompts
    are the first of the student's sequence. None: fresh noise in every update. sizes: (latent shape, share) of every
    size.
    """

    prompts: EncodedPrompts
    latent_shape: tuple[int, int, int]
    seed: int
    batch_size: int
    accumulation: int
    fake_updates: int
    rank: int
    num_processes: int
    device: torch.device
    samples_per_prompt: int = 1
    num_pairs: int | None = None
    sizes: tuple[tuple[tuple[int, int, int], float], ...] = ()

    def size(self, step: int) -> int:
        """Which of `sizes` an iteration has, by their shares; all its updates and processes have the same one."""
        if len(self.sizes) < 2:
            return 0
        u = float(torch.rand((), generator=generator(self.seed, "size", step), dtype=torch.float64))
        reached = itertools.accumulate(share for _, share in self.sizes)
        return next((i for i, share in enumerate(reached) if u < share), len(self.sizes) - 1)

    def micro_batch(self, role: Role, step: int, index: int, *, update: int = 0) -> MicroBatch:
        """Micro-batch `index` of update `update` (0 ... M - 1; 0 for the student) of `role` at `step`."""
        updates_per_step = self.fake_updates if role == "fake_score" else 1
        done = (step * updates_per_step + update) * self.accumulation + index
        start = (done * self.num_processes + self.rank) * self.batch_size
        positions = range(start, start + self.batch_size)
        number = index * self.num_processes + self.rank

        def rng(stream: str) -> torch.Generator:
            return generator(self.seed, f"{role}/{update}/{number}/{stream}", step)

        of_update = generator(self.seed, f"{role}/{update}/levels", step)
        levels = stratified_levels(
            self.batch_size, number, self.accumulation * self.num_processes, of_update, rng("levels")
        )
        if role == "student" and self.num_pairs is not None:
            pairs = prompt_indices(positions, self.num_pairs, seed=self.seed, stream="pairs").tolist()
            return replace(self.pairs(pairs, rng), levels=levels, number=done)
        size = self.size(step)
        shape = self.sizes[size][0] if self.sizes else self.latent_shape
        noise = torch.randn(self.batch_size, *shape, generator=rng("noise"))
        batch = self._micro_batch(self._prompts(role, positions), noise, rng)
        return replace(batch, levels=levels, number=done, size=size)

    def pairs(self, numbers: list[int], rng: Callable[[str], torch.Generator]) -> MicroBatch:
        """The fixed pairs of prompt and noise with these numbers."""
        noise_seeds = [generator(self.seed, "pair_noise", pair).initial_seed() for pair in numbers]
        noise = image_noise(noise_seeds, self.latent_shape)
        return replace(self._micro_batch(self.pair_prompts(numbers), noise, rng), noise_seeds=noise_seeds)

    def pair_prompts(self, numbers: Iterable[int]) -> Tensor:
        """Indices of the prompts of these pairs: the first of the student's sequence."""
        return self._prompts("student", numbers)

    def _prompts(self, role: Role, positions: Iterable[int]) -> Tensor:
        places = [position // self.samples_per_prompt for position in positions]
        return prompt_indices(places, len(self.prompts), seed=self.seed, stream=f"{role}/prompts")

    def _micro_batch(self, chosen: Tensor, noise: Tensor, rng: Callable[[str], torch.Generator]) -> MicroBatch:
        return MicroBatch(
            prompts=[self.prompts.prompts[i] for i in chosen.tolist()],
            noise=to_device(noise, self.device),
            cond=self.prompts.cond(chosen).to(self.device),
            uncond=self.prompts.uncond(chosen, self.device),
            rng=rng,
            levels=torch.zeros(len(noise)),
            negatives=tuple(self.prompts.negatives[i] for i in chosen.tolist()),
        )
