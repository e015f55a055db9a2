"""The discriminator of a run with an adversarial objective, and the real samples that it learns from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from dpdmd.data.images import read_image
from dpdmd.distributed.processes import on_all_processes
from dpdmd.distributed.wrapping import kept_gathered, replicate_head
from dpdmd.method.denoiser import Condition, Encode, concatenate
from dpdmd.method.devices import to_device
from dpdmd.method.discriminator import Discriminator, Head, discriminator_loss
from dpdmd.method.grids import sample_times
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator
from dpdmd.method.roles import Roles
from dpdmd.models.base import ModelAdapter, feature_reader
from dpdmd.recipe.plan import Plan
from dpdmd.store.progress import tracked
from dpdmd.training.data import BatchSource, EncodedPrompts, MicroBatch
from dpdmd.training.updates import MicroLoss


def new_discriminator(
    plan: Plan, adapter: ModelAdapter, roles: Roles, cond: Condition, accelerator: Accelerator
) -> Discriminator:
    """A new head on the features of the plan's role and blocks; in bf16 only the network call is autocast.

    cond: of any prompt, to see how wide the features are.
    """
    assert plan.objective.discriminator is not None  # the objective trains one
    role, device, compute = plan.objective.discriminator.features, accelerator.device, plan.compute
    guidance = plan.embedded_guidance[role]
    read = feature_reader(adapter, roles, role, plan.feature_blocks, guidance, whole_calls=bool(compute.shard))
    # Hooks that read features do not run in a compiled block.
    eager = partial(torch.compiler.set_stance, "force_eager") if compute.compile else nullcontext
    gathered = partial(kept_gathered, roles.modules[role]) if compute.shard else nullcontext

    def features(x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        with eager(), torch.autocast(device.type, torch.bfloat16, enabled=compute.in_bf16):
            return read(x_t, t, cond)

    @contextmanager
    def differentiable() -> Iterator[None]:
        with eager(), gathered():
            yield

    with torch.no_grad():
        blank = torch.zeros(1, *plan.latent_shape, device=device)
        sizes = [f.shape[-1] for f in features(blank, torch.full((1,), 0.5, device=device), cond.to(device))]
    return Discriminator(features, Head(sizes, seed=plan.data.seed).to(device), differentiable)


@dataclass(frozen=True)
class RealSamples:
    """`latents` (R, C, H, W) in fp32 on the CPU of every process, and the prompt of each."""

    latents: Tensor
    prompts: list[str]

    def draw(self, number: int, rng: torch.Generator, encode: Encode, device: torch.device) -> tuple[Tensor, Condition]:
        """`number` of them, drawn at random with replacement, and the conditioning of their prompts."""
        rows = torch.randint(len(self.prompts), (number,), generator=rng)
        return to_device(self.latents[rows], device), encode([self.prompts[i] for i in rows.tolist()]).to(device)


class Adversary:
    """A run's discriminator, the real samples, and the loss that trains its head to tell them from the student's.

    network: the head, wrapped if there are several processes.
    """

    def __init__(
        self,
        plan: Plan,
        adapter: ModelAdapter,
        roles: Roles,
        prompts: EncodedPrompts,
        accelerator: Accelerator,
        draw: Callable[[], RealSamples],
    ):
        """draw: returns the real samples; the first loss calls it."""
        self.discriminator = new_discriminator(plan, adapter, roles, prompts.cond(torch.tensor([0])), accelerator)
        self.network = replicate_head(self.discriminator.head, accelerator)
        self.tau_range, self.path = plan.tau_range, plan.path
        self.prompts, self._draw = prompts, draw

    @cached_property
    def real(self) -> RealSamples:
        """The real samples."""
        return self._draw()

    def loss(self, batch: MicroBatch, x0: Tensor, *, update: int) -> MicroLoss:
        """L_D (arXiv 2405.14867, sec. 4.3) on the student's samples x0 of `batch` and as many real ones.

        The i-th real and student sample share tau, which is uniform as in DMD2: at high noise they cannot be
        distinguished. Features have no graph, so that only the head receives gradient (differs: DMD2 also trains the
        fake score, whose features these are, with this loss). update: index of the fake-score update in this iteration.
        """
        rng, number = batch.rng(f"discriminator_{update}"), len(x0)
        real, real_cond = self.real.draw(number, batch.rng(f"real_{update}"), self.prompts.encode, x0.device)
        tau = sample_times(number, rng, low=self.tau_range.low, high=self.tau_range.high)
        both, cond = torch.cat([real, x0]), concatenate([real_cond, batch.cond])
        taus = to_device(tau.repeat(2), x0.device)
        x_tau = add_noise(self.path, both, to_device(torch.randn(both.shape, generator=rng), x0.device), taus)
        with torch.no_grad():
            features = self.discriminator.features(x_tau, taus, cond)
        on_real, on_fake = self.network(features).split(number)
        loss = discriminator_loss(on_real, on_fake)
        right = 0.5 * ((on_real > 0).float().mean() + (on_fake < 0).float().mean())
        return MicroLoss(loss, {"loss/discriminator": loss.detach(), "health/discriminator_accuracy": right})


def teacher_samples(
    plan: Plan, batches: BatchSource, sample: Callable[[MicroBatch], Tensor], accelerator: Accelerator
) -> RealSamples:
    """`num_real` samples of the guided teacher for the first prompts of the student's sequence, each with fixed noise.

    sample: returns the teacher's x0 (B, C, H, W) of a micro-batch whose noise has seeds; it may read them from disk.
    """
    assert plan.objective.discriminator is not None  # the objective trains one
    number, size = plan.objective.discriminator.num_real, plan.data.batch_size
    rng = partial(generator, plan.data.seed)

    def make(rows: list[int]) -> Tensor:
        return sample(batches.pairs(rows, rng))

    latents = over_processes(number, size, make, accelerator, "samples of the teacher")
    chosen = batches.pair_prompts(range(number)).tolist()
    return RealSamples(latents, [batches.prompts.prompts[i] for i in chosen])


def image_samples(plan: Plan, adapter: ModelAdapter, accelerator: Accelerator) -> RealSamples:
    """The plan's images as latents, cropped and resampled to the training size.

    Raises ValueError in all processes, naming a broken image.
    """
    height, width = (adapter.vae_factor * side for side in plan.latent_shape[1:])

    def make(rows: list[int]) -> Tensor:
        pixels = []
        try:
            on_all_processes(lambda: pixels.extend(read_image(plan.real_images[i][0], height, width) for i in rows))
        except OSError as error:
            raise ValueError(f"objective.adversarial.real: {error}") from None
        return adapter.encode_images(torch.stack(pixels)).float()

    adapter.vae.to(accelerator.device)
    number, size = len(plan.real_images), plan.data.batch_size
    latents = over_processes(number, size, make, accelerator, "images to latents")
    adapter.vae.to("cpu")
    return RealSamples(latents, [prompt for _, prompt in plan.real_images])


def over_processes(
    number: int, size: int, make: Callable[[list[int]], Tensor], accelerator: Accelerator, title: str
) -> Tensor:
    """`make(rows)` of rows 0 ... number - 1, `size` at a time, split over the processes; all results on every CPU.

    The last calls are filled up with the first rows, so that all processes make equally many calls.
    """
    together, rank = size * accelerator.num_processes, accelerator.process_index
    parts = []
    starts = range(0, number, together)
    for start in tracked(starts, title, len(starts), unit="batch", shown=accelerator.is_main_process):
        mine = make([(start + rank * size + i) % number for i in range(size)])
        parts.append(cast("Tensor", accelerator.gather(mine.contiguous())).cpu())
    return torch.cat(parts)[:number]
