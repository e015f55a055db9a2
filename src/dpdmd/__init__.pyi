from .evaluate.generate import sample
from .method.denoiser import Condition, Denoiser
from .method.grids import Grid, anchor_steps, sample_times, uniform_grid
from .method.guidance import Guidance, guided
from .method.losses import anchor_loss, denoising_loss, dmd_gradient, dmd_loss
from .method.objective import Objective, StudentStep, Term, TermResult
from .method.paths import FlowPath, Path, Prediction, VPPath, add_noise, secant, step
from .method.randomness import generator
from .method.roles import Role, Roles
from .method.rollout import GuidedTeacher, StudentRollout, anchored_rollout, backward_simulation, rollout
from .method.terms.anchor import DiversityAnchor
from .method.terms.dmd import Dmd
from .method.terms.perceptual import Perceptual
from .models.base import ModelAdapter, denoiser, network_denoiser
from .models.load import Sampler, load_adapter, load_sampler
from .planning.answer import costs
from .planning.write import write_recipe
from .publish.export import export_run
from .recipe.lint import lint_grids
from .recipe.objectives import ObjectiveSetting, dmd, dp_dmd
from .recipe.schema import Recipe
from .recipe.toml import load_recipe
from .report.build import report_from_runs
from .store.errors import StoppedBySignal
from .training.judge import evaluate_run
from .training.public import Run, train

__version__: str
__all__ = [
    "Condition",
    "Denoiser",
    "DiversityAnchor",
    "Dmd",
    "FlowPath",
    "Grid",
    "GuidedTeacher",
    "Guidance",
    "ModelAdapter",
    "Objective",
    "ObjectiveSetting",
    "Path",
    "Perceptual",
    "Prediction",
    "Recipe",
    "Role",
    "Roles",
    "Run",
    "Sampler",
    "StoppedBySignal",
    "StudentRollout",
    "StudentStep",
    "Term",
    "TermResult",
    "VPPath",
    "add_noise",
    "anchor_loss",
    "anchor_steps",
    "anchored_rollout",
    "backward_simulation",
    "costs",
    "denoiser",
    "denoising_loss",
    "dmd",
    "dmd_gradient",
    "dmd_loss",
    "dp_dmd",
    "evaluate_run",
    "export_run",
    "generator",
    "guided",
    "lint_grids",
    "load_adapter",
    "load_recipe",
    "load_sampler",
    "network_denoiser",
    "report_from_runs",
    "rollout",
    "sample",
    "sample_times",
    "secant",
    "step",
    "train",
    "uniform_grid",
    "write_recipe",
]
