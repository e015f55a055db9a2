"""The student's side of the adversarial loss of DMD2."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dpdmd.method.devices import to_device
from dpdmd.method.discriminator import generator_loss
from dpdmd.method.grids import sample_times
from dpdmd.method.objective import StudentStep, Term, TermResult
from dpdmd.method.paths import add_noise


@dataclass(frozen=True, kw_only=True)
class Adversarial(Term):
    """L_gan (arXiv 2405.14867, sec. 4.3): noised like data, the student's samples are to be taken for real.

    Per sample: tau uniform in [tau_low, tau_high], x_tau = alpha x + sigma n, loss of the discriminator's logit there.
    The gradient is taken with respect to x and passed on from there, so that the student alone receives any, in the
    steps that its rollout kept: neither the head nor the network whose features it sees.
    """

    tau_low: float
    tau_high: float
    name: ClassVar[str] = "adversarial"

    @property
    def num_forwards(self) -> int:
        """One, of the network whose features are seen."""
        return 1

    def __call__(self, step: StudentStep) -> TermResult:
        discriminator = step.discriminator
        assert discriminator is not None, "the adversarial term needs an objective with a discriminator"
        rng = step.rng("adversarial")
        x = step.rollout.x0.detach().requires_grad_()
        tau = to_device(sample_times(len(x), rng, low=self.tau_low, high=self.tau_high), x.device)
        noise = to_device(torch.randn(x.shape, generator=rng), x.device)
        with torch.enable_grad(), discriminator.differentiable():
            logits = discriminator(add_noise(step.path, x, noise, tau), tau, step.cond)
            loss = generator_loss(logits)
            (gradient,) = torch.autograd.grad(loss, x)
        # Its value is the loss, its derivative by the samples is `gradient`.
        return TermResult(loss.detach() + (gradient * (step.rollout.x0 - x.detach())).sum())
