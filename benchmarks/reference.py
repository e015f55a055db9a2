"""The training schedule of the paper's released code (arXiv 2602.03139), reimplemented literally for benchmarks.cycle.

It follows facts about the released training script and launcher configuration; no code is copied:

- three full copies of the network;
- prompts are encoded three times in every micro-iteration, once of them together with the empty negative prompt;
- text encoders and autoencoder stay on the device;
- every fake-score update has its own student rollout;
- K = 10 teacher steps on the stock grid, with both predictions of the guidance in one batch;
- the student's samples are decoded one by one and written as PNG files;
- activation checkpointing in the model, and again around every block by the launcher;
- plain torch.optim.AdamW.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn import functional as F

NUM_TEACHER_STEPS, NUM_ANCHOR_STEPS, NUM_STUDENT_STEPS, NUM_FAKE_UPDATES = 30, 10, 4, 5
GUIDANCE_SCALE, ANCHOR_WEIGHT, LEARNING_RATE = 3.5, 0.05, 1e-5

Phase = Callable[[str], AbstractContextManager]


class ReferenceRun:
    """The state of a run: `cycle` is five fake-score micro-iterations and one of the student."""

    def __init__(self, folder: Path, prompts: list[str], batch_size: int, device: torch.device, out: Path):
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(folder).to(device)
        self.teacher = self.pipeline.transformer.requires_grad_(False).eval()
        self.student, self.fake_score = self._copy(), self._copy()
        self.schedulers = {role: deepcopy(self.pipeline.scheduler) for role in ("student", "teacher", "tau")}
        self.optimizers = {
            network: torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
            for network in (self.student, self.fake_score)
        }
        self.prompts, self.batch_size, self.device, self.out, self.iteration = prompts, batch_size, device, out, 0

    def _copy(self) -> nn.Module:
        network = deepcopy(self.pipeline.transformer).requires_grad_(True).train()
        network.enable_gradient_checkpointing()
        blocks = tuple({type(block) for block in network.transformer_blocks})
        apply_activation_checkpointing(network, checkpoint_wrapper, check_fn=lambda module: isinstance(module, blocks))
        return network

    def resident(self) -> list[nn.Module | torch.optim.Optimizer]:
        """Everything that stays on the device."""
        modules = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        return [*modules, self.student, self.fake_score, *self.optimizers.values()]

    def cycle(self, phase: Phase) -> None:
        """M fake-score updates, then one of the student."""
        for _ in range(NUM_FAKE_UPDATES):
            self._fake_update(phase)
        self._student_update(phase)

    def _begin(self, phase: Phase) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Noise, and the conditioning of each role, which is encoded separately for each."""
        start = self.iteration * self.batch_size
        batch = [self.prompts[(start + i) % len(self.prompts)] for i in range(self.batch_size)]
        rng = torch.Generator().manual_seed(self.iteration)
        self.iteration += 1
        with phase("text encoding"):
            conds = {role: self._encode(batch, guided=role == "teacher") for role in ("student", "fake", "teacher")}
        config = self.teacher.config
        shape = (self.batch_size, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=rng).to(self.device), conds

    @torch.no_grad()
    def _encode(self, batch: list[str], *, guided: bool) -> tuple[Tensor, Tensor]:
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompt=batch, prompt_2=batch, prompt_3=batch, negative_prompt="", do_classifier_free_guidance=guided
        )
        if guided:
            return torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])
        return embeds, pooled

    def _call(self, network: nn.Module, x: Tensor, timestep: Tensor, cond: tuple[Tensor, Tensor]) -> Tensor:
        return network(
            hidden_states=x,
            timestep=timestep.expand(len(x)),
            encoder_hidden_states=cond[0],
            pooled_projections=cond[1],
            return_dict=False,
        )[0]

    def _guided(self, x: Tensor, timestep: Tensor, cond: tuple[Tensor, Tensor]) -> Tensor:
        uncond, cond_ = self._call(self.teacher, torch.cat([x, x]), timestep, cond).chunk(2)
        return uncond + GUIDANCE_SCALE * (cond_ - uncond)

    def _rollout(self, noise: Tensor, cond: tuple[Tensor, Tensor], *, cut: bool) -> tuple[Tensor, Tensor]:
        """The student's samples and its first velocity; `cut` stops the gradient after step 1."""
        scheduler = self.schedulers["student"]
        scheduler.set_timesteps(NUM_STUDENT_STEPS, device=self.device)
        x, first = noise, None
        for i, timestep in enumerate(scheduler.timesteps):
            velocity = self._call(self.student, x, timestep, cond)
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
            if i == 0:
                first, x = velocity, x.detach() if cut else x
        return x, first

    def _tau(self) -> tuple[Tensor, Tensor]:
        """One noise level for the whole batch: timestep and sigma."""
        scheduler: FlowMatchEulerDiscreteScheduler = self.schedulers["tau"]
        scheduler.set_timesteps(scheduler.config.num_train_timesteps, device=self.device)
        index = torch.randint(0, len(scheduler.timesteps), (1,))
        return scheduler.timesteps[index], scheduler.sigmas[index]

    def _update(self, network: nn.Module, loss: Tensor, phase: Phase) -> None:
        with phase("backward"):
            loss.backward()
        with phase("optimiser"):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            self.optimizers[network].step()
            self.optimizers[network].zero_grad(set_to_none=True)
        float(loss.detach())

    def _fake_update(self, phase: Phase) -> None:
        noise, conds = self._begin(phase)
        with torch.no_grad(), phase("student rollout for the fake score"):
            x0, _ = self._rollout(noise, conds["student"], cut=False)
        timestep, sigma = self._tau()
        eps = torch.randn_like(x0)
        with phase("forward with graph"):
            velocity = self._call(self.fake_score, (1 - sigma) * x0 + sigma * eps, timestep, conds["fake"])
        self._update(self.fake_score, F.mse_loss(velocity, eps - x0), phase)

    def _student_update(self, phase: Phase) -> None:
        noise, conds = self._begin(phase)
        scheduler = self.schedulers["teacher"]
        scheduler.set_timesteps(NUM_TEACHER_STEPS, device=self.device)
        with torch.no_grad(), phase("anchor"):
            z = noise
            for timestep in scheduler.timesteps[:NUM_ANCHOR_STEPS]:
                z = scheduler.step(self._guided(z, timestep, conds["teacher"]), timestep, z, return_dict=False)[0]
            target = (noise - z) / (1 - scheduler.sigmas[NUM_ANCHOR_STEPS])
        with phase("forward with graph"):
            x0, first = self._rollout(noise, conds["student"], cut=True)
        with torch.no_grad(), phase("decoding"):
            self._draw(x0)
        timestep, sigma = self._tau()
        with torch.no_grad(), phase("scores"):
            x_tau = (1 - sigma) * x0 + sigma * torch.randn_like(x0)
            real = x_tau - sigma * self._guided(x_tau, timestep, conds["teacher"])
            fake = x_tau - sigma * self._call(self.fake_score, x_tau, timestep, conds["fake"])
            gradient = (fake - real) / (x_tau - real).abs().mean(dim=(1, 2, 3), keepdim=True)
        dmd = 0.5 * F.mse_loss(x0, (x0 - gradient).detach())
        self._update(self.student, dmd + ANCHOR_WEIGHT * F.mse_loss(first, target), phase)

    def _draw(self, x0: Tensor) -> None:
        config = self.pipeline.vae.config
        for i, latents in enumerate(x0):
            image = self.pipeline.vae.decode(latents[None] / config.scaling_factor + config.shift_factor).sample
            self.pipeline.image_processor.postprocess(image)[0].save(self.out / f"{i}.png")
