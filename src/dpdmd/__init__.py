"""dpdmd: few-step students of diffusion and flow models that keep their teacher's diversity.

The parts of the method, for those who research the next objective; importing them needs torch only. What needs more
(training, evaluation, reports) lives in `dpdmd.train`, `dpdmd.evaluate`, `dpdmd.report` and the command line.
"""

from dpdmd.denoiser import Condition, Denoiser
from dpdmd.grids import Grid, anchor_steps, lint, sample_times, uniform_grid
from dpdmd.guidance import Guidance, guided
from dpdmd.losses import anchor_loss, denoising_loss, dmd_gradient, dmd_loss
from dpdmd.models.base import ModelAdapter, denoiser, network_denoiser
from dpdmd.models.load import Sampler, load_adapter, load_sampler
from dpdmd.objectives.anchor import DiversityAnchor
from dpdmd.objectives.base import Objective, StudentStep, Term, TermResult
from dpdmd.objectives.dmd import Dmd
from dpdmd.objectives.perceptual import Perceptual
from dpdmd.paths import FlowPath, Path, Prediction, VPPath, add_noise, secant, step
from dpdmd.randomness import generator
from dpdmd.roles import Role, Roles
from dpdmd.rollout import StudentRollout, student_rollout, teacher_rollout

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
