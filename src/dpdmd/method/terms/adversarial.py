"""The student's side of the adversarial loss of DMD2."""

from dataclasses import dataclass

import torch

from dpdmd.method.grids import sample_times
from dpdmd.method.losses import AdversarialKind, generator_loss
from dpdmd.method.objective import StudentStep, TermResult
from dpdmd.method.paths import add_noise


@dataclass(frozen=True)
class Adversarial:
    """L_gan (arXiv 2405.14867, sec. 4.3): noised like data, the student's samples shall be taken for real.

    Per sample: tau uniform in [tau_low, tau_high], x_tau = alpha x + sigma n, loss of the discriminator's logit there.
    Its gradient is taken with respect to x alone and handed on from there, so that the student, through the steps that
    its rollout kept, is all that receives any: neither head nor the network whose features it sees.
    """

    kind: AdversarialKind
    tau_low: float
    tau_high: float
    weight: float
    name: str = "adversarial"

    @property
    def num_forwards(self) -> int:
        """One of the network whose features are seen."""
        return 1

    def __call__(self, step: StudentStep) -> TermResult:
        rng = step.rng("adversarial")
        x = step.rollout.x0.detach().requires_grad_()
        tau = sample_times(len(x), rng, low=self.tau_low, high=self.tau_high).to(x.device)
        noise = torch.randn(x.shape, generator=rng).to(x.device)
        with torch.enable_grad(), step.discriminator.differentiable():
            logits = step.discriminator(add_noise(step.path, x, noise, tau), tau, step.cond)
            loss = generator_loss(logits, self.kind)
            (gradient,) = torch.autograd.grad(loss, x)
        # Worth the loss, with this derivative by the samples.
        return TermResult(loss.detach() + (gradient * (step.rollout.x0 - x.detach())).sum(), {})
