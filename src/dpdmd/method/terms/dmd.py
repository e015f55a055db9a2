"""Distribution matching distillation: move the student's samples along the difference of two scores."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.method.grids import sample_times
from dpdmd.method.guidance import Guidance, guided_pair
from dpdmd.method.losses import Normalisation, dmd_gradient, dmd_loss
from dpdmd.method.objective import StudentStep, TermResult
from dpdmd.method.paths import Prediction, add_noise


@dataclass(frozen=True)
class Dmd:
    """L_dmd (arXiv 2311.18828, eq. 7; arXiv 2405.14867).

    Per sample: tau in [tau_low, tau_high], x_tau = alpha x + sigma n; real = guided teacher, fake = fake score
    without guidance; the loss pulls x along x0_real - x0_fake. The student alone receives gradient.

    That direction has two parts (arXiv 2511.22677), matching x0_cond - x0_fake, which brings the student to what the
    unguided teacher draws, and guidance x0_real - x0_cond. The second is multiplied by `guidance_weight`, and with
    `guidance_tau` = (low, high) taken at noise levels of its own, at one more teacher call.
    """

    guidance: Guidance
    tau_low: float
    tau_high: float
    tau_shift: float
    normalisation: Normalisation
    guidance_weight: float = 1.0
    guidance_tau: tuple[float, float] | None = None
    weight: float = 1.0
    name: str = "dmd"

    @property
    def num_forwards(self) -> int:
        """The guided teacher and the fake score once each; with noise levels of its own the teacher once more."""
        return self.guidance.num_forwards + 1 + (self.guidance_tau is not None)

    def __call__(self, step: StudentStep) -> TermResult:
        x, rng = step.rollout.x0, step.rng("dmd")
        x_tau, tau = self._noised(step, rng, self.tau_low, self.tau_high)
        with torch.no_grad():
            fake = step.fake_score(x_tau, tau, step.cond)
            if self.guidance_tau is None:
                cond, real = guided_pair(step.teacher, x_tau, tau, step.cond, step.uncond, self.guidance)
                real = _between(cond, real, self.guidance_weight)
                gradient = dmd_gradient(x, x_tau, real, fake, self.normalisation)
            else:
                real = step.teacher(x_tau, tau, step.cond)
                gradient = dmd_gradient(x, x_tau, real, fake, self.normalisation)
                gradient = gradient + self.guidance_weight * self._guidance_gradient(step, rng)
        return TermResult(dmd_loss(x, gradient), score_health(x, real, fake))

    def _noised(self, step: StudentStep, rng: torch.Generator, low: float, high: float) -> tuple[Tensor, Tensor]:
        """The student's samples at noise levels between low and high, and these."""
        x = step.rollout.x0.detach()
        tau = sample_times(len(x), rng, low=low, high=high, shift=self.tau_shift).to(x.device)
        noise = torch.randn(x.shape, generator=rng).to(x.device)
        return add_noise(step.path, x, noise, tau), tau

    def _guidance_gradient(self, step: StudentStep, rng: torch.Generator) -> Tensor:
        """(x0_cond - x0_real) / norm at noise levels of its own."""
        x_tau, tau = self._noised(step, rng, *self.guidance_tau)
        cond, real = guided_pair(step.teacher, x_tau, tau, step.cond, step.uncond, self.guidance)
        return dmd_gradient(step.rollout.x0, x_tau, real, cond, self.normalisation)


def _between(a: Prediction, b: Prediction, weight: float) -> Prediction:
    """a + weight (b - a)."""
    if weight == 1.0:
        return b
    return Prediction(a.x0 + weight * (b.x0 - a.x0), a.eps + weight * (b.eps - a.eps))


@torch.no_grad()
def score_health(x: Tensor, real: Prediction, fake: Prediction) -> dict[str, Tensor]:
    """How far the fake score is from the guided teacher, seen from the student's samples x.

    With r = x0_real - x and f = x0_fake - x: `cosine` of r and f, `relative_gap` = |f - r| / |r|,
    `magnitude_ratio` = |f| / |r|, means over the batch.
    """
    r, f = (real.x0 - x).flatten(1), (fake.x0 - x).flatten(1)
    size = r.norm(dim=1).clamp_min(1e-8)
    return {
        "cosine": F.cosine_similarity(r, f).mean(),
        "relative_gap": ((f - r).norm(dim=1) / size).mean(),
        "magnitude_ratio": (f.norm(dim=1) / size).mean(),
    }
