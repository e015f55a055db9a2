"""Toy models shared by the tests, handed out as fixtures: each fixture returns the class or the function itself."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_adapter import PROMPTS, TinyAdapter
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import uniform_grid
from dpdmd.method.objective import StudentStep
from dpdmd.method.paths import FlowPath, Prediction, from_velocity, per_sample
from dpdmd.method.randomness import generator
from dpdmd.models.sampling import student_rollout
from dpdmd.recipe.schema import Recipe


def make_prompts(means) -> Condition:
    """Prompts that each say one number, the mean of their data."""
    return Condition({"mean": torch.as_tensor(means, dtype=torch.float32)})


class ExactGaussian:
    """The optimal denoiser of data N(mean, std^2) in each coordinate, with `mean` given by the prompt, on any path.

    x0 = mean + alpha std^2 r / var and eps = sigma r / var, with r = x_t - alpha mean, var = alpha^2 std^2 + sigma^2.
    Linear in the mean: guided, it is the denoiser of the mean u + s (c - u).
    """

    def __init__(self, path, std: float):
        self.path, self.std = path, std

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma = per_sample(self.path.alpha(t), x_t), per_sample(self.path.sigma(t), x_t)
        mean = per_sample(cond.tensors["mean"], x_t)
        score = (x_t - alpha * mean) / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(x0=mean + alpha * self.std**2 * score, eps=sigma * score)


class StepwiseNetwork(nn.Module):
    """A flow network with separate parameters for each time of a grid: velocity = weight x_t + bias + gain mean.

    Row i of each parameter serves the times nearest to times[i], so a gradient shows which steps it came through.
    """

    def __init__(self, times, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.times = torch.tensor(times[:-1])
        for name in ("weight", "bias", "gain"):
            setattr(self, name, nn.Parameter(torch.randn(len(self.times), generator=rng)))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        row = (t[:, None] - self.times).abs().argmin(dim=1)
        constant = self.bias[row] + self.gain[row] * cond.tensors["mean"]
        return from_velocity(x_t, per_sample(self.weight[row], x_t) * x_t + per_sample(constant, x_t), t)

    def steps_with_gradient(self) -> list[bool]:
        """For each step whether any gradient arrived there; exact zeros and None count as none."""
        rows = torch.zeros(len(self.times), dtype=torch.bool)
        for parameter in self.parameters():
            if parameter.grad is not None:
                rows |= parameter.grad != 0
        return rows.tolist()


class Recorder:
    """A denoiser that records its `calls` as (x_t, t, cond), and whether gradients were recorded."""

    def __init__(self, denoise):
        self.denoise, self.calls, self.grad_enabled = denoise, [], []

    def __call__(self, x_t, t, cond):
        self.calls.append((x_t.detach().clone(), t.clone(), cond))
        self.grad_enabled.append(torch.is_grad_enabled())
        return self.denoise(x_t, t, cond)


def make_student_step(
    student,
    teacher,
    fake_score,
    *,
    noise,
    cond,
    uncond,
    student_grid,
    teacher_grid=None,
    detach_first=False,
    seed=0,
    path=None,
    prediction_space="velocity",
) -> StudentStep:
    """One micro-batch, on a flow by default: the rollout of `student` from `noise`, generators named by `seed`."""
    path = path or FlowPath()
    return StudentStep(
        rollout=student_rollout(student, path, noise, cond, grid=student_grid, detach_first=detach_first),
        noise=noise,
        cond=cond,
        uncond=uncond,
        teacher=teacher,
        fake_score=fake_score,
        path=path,
        student_grid=student_grid,
        teacher_grid=teacher_grid or uniform_grid(8, shift=3),
        prediction_space=prediction_space,
        rng=lambda stream: generator(seed, stream),
    )


@pytest.fixture
def prompts():
    return make_prompts


@pytest.fixture
def exact_gaussian():
    return ExactGaussian


@pytest.fixture
def stepwise_network():
    return StepwiseNetwork


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
def student_step():
    return make_student_step


@pytest.fixture
def randn():
    """Standard normal tensors from a seed: randn(seed, *shape)."""
    return lambda seed, *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adapter() -> TinyAdapter:
    return TinyAdapter()


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# some prompts\n\n" + "\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make_recipe(tmp_path, prompts_file):
    """A recipe of a few fast updates; sections given as keyword arguments take precedence over these."""

    def make(folder: str = "run", **sections: dict) -> Recipe:
        data = {
            "model": {"teacher": "tiny"},
            "student": {"num_steps": 3},
            "data": {"prompts": str(prompts_file), "cache": "none"},
            "train": {"num_updates": 4, "batch_size": 4, "fake_updates": 2, "learning_rate": 1e-2},
            "checkpoint": {"every": 2},
            "output": {"folder": str(tmp_path / folder)},
        }
        for name, values in sections.items():
            data[name] = data.get(name, {}) | values
        return Recipe.model_validate(data)

    return make


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache of embeddings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPDMD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_logger():
    """Each test begins without `show_messages`, whatever an earlier one has called."""
    logger = logging.getLogger("dpdmd")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)  # setLevel also forgets what the loggers below have cached
