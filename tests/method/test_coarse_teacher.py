"""How near few steps of the built-in teacher land to all of them."""

import pytest
import torch

from dpdmd.method.grids import Grid, anchor_steps, coarsen, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import encoded, network_denoiser
from dpdmd.models.load import load_adapter
from dpdmd.world.prompts import evaluation_prompts


def test_steps_even_in_t_land_nearer_to_the_teacher_than_steps_even_in_index():
    """From noise to t = 0.75: the distances, as mean velocities, that docs/method.md quotes."""
    adapter, prompts = load_adapter("scenes"), evaluation_prompts()
    denoise = network_denoiser(adapter, adapter.load_network().requires_grad_(False))
    cond, uncond = encoded(adapter, prompts), encoded(adapter, [""] * len(prompts))
    fine = uniform_grid(30, shift=3)
    stop = anchor_steps(fine, 0.75)
    noise = torch.randn((len(prompts), *adapter.latent_shape()), generator=torch.Generator().manual_seed(0))

    def landing(grid: Grid, number: int, second_order: bool) -> torch.Tensor:
        teacher = GuidedTeacher(denoise, adapter.path, grid, Guidance(3.25))
        return teacher.rollout(noise, cond, uncond, stop_after=number, second_order=second_order)

    whole = landing(fine, stop, second_order=False)
    even_in_index = Grid(tuple(fine.times[i] for i in (0, 4, 8, 11)) + fine.times[stop:])
    distances = [
        ((landing(grid, 4, second_order=True) - whole) / (1 - fine.times[stop])).square().mean().sqrt().item()
        for grid in (coarsen(fine, stop, 4)[0], even_in_index)
    ]
    assert distances == pytest.approx([0.048, 0.090], abs=0.004)
