"""Distribution matching distillation: move the student's samples along the difference of two scores."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dpdmd.method.devices import to_device
from dpdmd.method.grids import sample_times
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.losses import Normalisation, dmd_gradient, dmd_loss
from dpdmd.method.objective import StudentStep, Term, TermResult
from dpdmd.method.paths import Prediction, add_noise


@dataclass(frozen=True, kw_only=True)
class Dmd(Term):
    """L_dmd (arXiv 2311.18828, eq. 7; arXiv 2405.14867).

    Per sample: tau in [tau_low, tau_high], shifted by tau_shift; x_tau = alpha x + sigma n; real = the teacher there,
    guided by `guidance`; fake = the fake score there, without guidance. The loss pulls x along x0_real - x0_fake. The
    student alone receives gradient, in the steps that its rollout kept.
    """

    guidance: Guidance
    tau_low: float = 0.02
    tau_high: float = 0.98
    tau_shift: float = 1.0
    normalisation: Normalisation = "dpdmd"
    name: ClassVar[str] = "dmd"

    @property
    def num_forwards(self) -> int:
        """The guided teacher and the fake score, once each."""
        return self.guidance.num_forwards + 1

    def __call__(self, step: StudentStep) -> TermResult:
        x, rng = step.rollout.x0, step.rng("dmd")
        tau = sample_times(len(x), rng, low=self.tau_low, high=self.tau_high, shift=self.tau_shift)
        tau = to_device(tau, x.device)
        x_tau = add_noise(step.path, x.detach(), to_device(torch.randn(x.shape, generator=rng), x.device), tau)
        with torch.no_grad():
            fake = step.fake_score(x_tau, tau, step.cond)
            real = guided(step.teacher, x_tau, tau, step.cond, step.uncond, self.guidance)
        gradient = dmd_gradient(x, x_tau, real, fake, self.normalisation)
        return TermResult(dmd_loss(x, gradient), score_health(x, real, fake))


@torch.no_grad()
def score_health(x: Tensor, real: Prediction, fake: Prediction) -> dict[str, Tensor]:
    """How far the fake score is from the guided teacher, as seen from the student's samples x (B, C, H, W).

    With r = x0_real - x and f = x0_fake - x: `cosine` of r and f, `relative_gap` = |f - r| / |r|,
    `magnitude_ratio` = |f| / |r|, each the mean over the batch.
    """
    r, f = (real.x0 - x).flatten(1), (fake.x0 - x).flatten(1)
    size = r.norm(dim=1).clamp_min(1e-8)
    return {
        "cosine": F.cosine_similarity(r, f).mean(),
        "relative_gap": ((f - r).norm(dim=1) / size).mean(),
        "magnitude_ratio": (f.norm(dim=1) / size).mean(),
    }
