"""What the contract does not ask of SDXL: its timesteps, its students' schedulers, what it refuses."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.testing import assert_close

from dpdmd.method.grids import Grid
from dpdmd.method.paths import from_eps, from_v
from dpdmd.models.load import load_adapter
from dpdmd.models.sampling import student_rollout
from dpdmd.models.sdxl import SDXLAdapter

SHAPE = (4, 8, 8)
CONVERT = {"eps": from_eps, "v": from_v}


@pytest.fixture(scope="module")
def folder(tiny_folder) -> str:
    return tiny_folder("sdxl")


@pytest.fixture
def changed(folder, tmp_path):
    """The adapter of the same model, one part of which is configured otherwise; None takes a key out."""

    def adapter(part, **settings) -> SDXLAdapter:
        target = tmp_path / "changed"
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
        file = target / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        config = json.loads(file.read_text()) | settings
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return load_adapter(str(target))

    return adapter


class Recorder(nn.Module):
    """A network that keeps the timesteps it is fed and answers with zeros."""

    def forward(self, sample, timestep, **_):
        self.timesteps = timestep.tolist()
        return (torch.zeros_like(sample),)


def rollouts(adapter, kind, num_steps, randn):
    """A student's sample from given network outputs, by us and by the stock scheduler."""
    grid, noise = adapter.uniform_grid(num_steps), randn(0, 1, *SHAPE)
    outputs = [randn(10 + i, 1, *SHAPE) for i in range(num_steps)]
    ours_rng, stock_rng = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    remaining = iter(outputs)

    def denoise(x_t, t, cond):
        return CONVERT[adapter.prediction_space](adapter.path, x_t, next(remaining), t)

    def fresh_noise(i):
        return torch.randn(1, *SHAPE, generator=ours_rng)

    renoise = fresh_noise if kind == "renoise" else None
    ours = student_rollout(denoise, adapter.path, noise, None, grid=grid, renoise=renoise).x0
    scheduler = adapter.student_scheduler(kind, grid)
    timesteps = [round(1000 * t) - 1 for t in grid.times[:-1]]
    arguments = adapter.call_arguments(scheduler, grid)
    if "timesteps" in arguments:
        assert arguments["timesteps"] == timesteps
        scheduler.set_timesteps(timesteps=timesteps)
    else:
        scheduler.set_timesteps(arguments["num_inference_steps"])
        assert scheduler.timesteps.tolist() == timesteps
    x_t = noise * scheduler.init_noise_sigma
    for output, timestep in zip(outputs, scheduler.timesteps, strict=True):
        x_t = scheduler.step(output, timestep, x_t, generator=stock_rng).prev_sample
    return ours, x_t


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["ode", "renoise"])
@pytest.mark.parametrize("num_steps", [1, 3, 4, 50])
def test_the_stock_scheduler_takes_the_students_steps(num_steps, kind, prediction_type, changed, randn):
    ours, stock = rollouts(changed("scheduler", prediction_type=prediction_type), kind, num_steps, randn)
    # Samples are of size 15 and more where eps is predicted at the noisiest timestep.
    assert_close(ours, stock, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("kind", "tolerance"), [("ode", 1e-4), ("renoise", 1.5e-3)])
def test_zero_terminal_noise_ratio_starts_from_pure_noise(kind, tolerance, changed, randn):
    adapter = changed("scheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    # diffusers' solvers, and so our path, put abar at 2^-24 and not 0; LCMScheduler does not, alpha = 2.4e-4 apart.
    assert adapter.path.alpha(torch.ones(1)).item() == pytest.approx(2.0**-12)
    ours, stock = rollouts(adapter, kind, 4, randn)
    assert_close(ours, stock, atol=tolerance, rtol=0)


def test_grids_are_ddims_trailing_timesteps(folder):
    adapter = load_adapter(folder)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for num_steps in [*range(1, 51), 100, 250, 1000]:
        scheduler.set_timesteps(num_steps)
        stock = [*((timestep + 1) / 1000 for timestep in scheduler.timesteps.tolist()), 0.0]
        assert adapter.stock_grid(num_steps).times == adapter.uniform_grid(num_steps).times == tuple(stock)
        assert len(stock) == num_steps + 1
    assert adapter.stock_grid(61).num_steps == 61  # stock adds a timestep -1


def test_the_network_is_fed_the_timestep_whose_noise_x_t_has(folder, randn):
    adapter, network = load_adapter(folder), Recorder()
    t = torch.tensor([0.0, 0.0003, 0.0016, 0.02, 0.12345, 0.5, 0.74951, 0.9996, 1.0])
    cond = adapter.encode([""]).expand(len(t))
    prediction = adapter.predict(network, randn(0, len(t), *SHAPE), t, cond)
    assert network.timesteps == [0, 0, 1, 19, 122, 499, 749, 999, 999]
    # The path's noise at t is that of the same timestep, and none at t = 0.
    stock = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
    sigma = (1 - stock[torch.tensor(network.timesteps)]).sqrt()
    assert_close(adapter.path.sigma(t)[2:], sigma[2:])
    assert not adapter.path.sigma(t)[:2].any()
    assert_close(prediction.x0[:2], randn(0, len(t), *SHAPE)[:2])


def test_a_sampler_of_the_paper_by_default(folder):
    adapter = load_adapter(folder)
    assert (adapter.guidance_scale, adapter.num_inference_steps) == (8.0, 50)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (
            "scheduler",
            {"prediction_type": "sample"},
            "prediction_type must be one of epsilon, v_prediction, got 'sample'",
        ),
        ("scheduler", {"rescale_betas_zero_snr": True}, "predicting eps does not determine the image"),
        ("scheduler", {"beta_schedule": None}, "must contain num_train_timesteps, beta_start, beta_end, beta_schedule"),
        ("unet", {"time_cond_proj_dim": 8}, "with a guidance embedding .time_cond_proj_dim. is not supported"),
        ("vae", {"latents_mean": [0.0] * 4}, "autoencoder with latents_mean is not supported"),
    ],
)
def test_what_cannot_be_represented_is_refused(part, settings, message, changed):
    with pytest.raises(ValueError, match=message):
        changed(part, **settings)


def test_times_between_timesteps_are_refused(folder):
    adapter = load_adapter(folder)
    scheduler = adapter.student_scheduler("ode", Grid((1.0, 0.0)))
    assert adapter.call_arguments(scheduler, Grid((1.0, 0.667, 0.0)))["timesteps"] == [999, 666]
    with pytest.raises(ValueError, match="multiples of 1 / 1000"):
        adapter.call_arguments(scheduler, Grid((1.0, 0.6665, 0.0)))
