"""dpdmd: few-step students of diffusion and flow models that keep their teacher's diversity.

The parts of the method, for those who research the next objective; importing them needs torch only. What needs more
(training, evaluation, reports) lives in `dpdmd.train`, `dpdmd.evaluate`, `dpdmd.report` and the command line.
"""

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.grids import Grid, anchor_steps, lint, sample_times, uniform_grid
from dpdmd.method.guidance import Guidance, guided
from dpdmd.method.losses import anchor_loss, denoising_loss, dmd_gradient, dmd_loss
from dpdmd.method.objective import Objective, StudentStep, Term, TermResult
from dpdmd.method.paths import FlowPath, Path, Prediction, VPPath, add_noise, secant, step
from dpdmd.method.randomness import generator
from dpdmd.method.roles import Role, Roles
from dpdmd.method.rollout import StudentRollout, student_rollout, teacher_rollout
from dpdmd.method.terms.anchor import DiversityAnchor
from dpdmd.method.terms.dmd import Dmd
from dpdmd.method.terms.perceptual import Perceptual
from dpdmd.models.base import ModelAdapter, denoiser, network_denoiser
from dpdmd.models.load import Sampler, load_adapter, load_sampler

__version__ = "0.1.0"

__all__ = [
    "Condition",
    "Denoiser",
    "DiversityAnchor",
    "Dmd",
    "FlowPath",
    "Grid",
    "Guidance",
    "ModelAdapter",
    "Objective",
    "Path",
    "Perceptual",
    "Prediction",
    "Role",
    "Roles",
    "Sampler",
    "StudentRollout",
    "StudentStep",
    "Term",
    "TermResult",
    "VPPath",
    "add_noise",
    "anchor_loss",
    "anchor_steps",
    "denoiser",
    "denoising_loss",
    "dmd_gradient",
    "dmd_loss",
    "generator",
    "guided",
    "lint",
    "load_adapter",
    "load_sampler",
    "network_denoiser",
    "sample_times",
    "secant",
    "step",
    "student_rollout",
    "teacher_rollout",
    "uniform_grid",
]
