"""Sana: what the contract does not ask of every family."""

import json
import shutil

import pytest
import tiny_sana
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from dpdmd.evaluate.generate import sample_latents
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.sana import INSTRUCTION

PROMPTS = ["a red circle", "the small blue cross on a white background"]


@pytest.fixture(scope="module")
def folder(tiny_folder) -> str:
    """A network with a learned variance and with a time scale, as some released checkpoints have."""
    return tiny_folder("sana", out_channels=8, timestep_scale=0.001)


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = tiny_sana.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def with_scheduler(folder, tmp_path):
    """The adapter of the same folder with another scheduler."""

    def make(scheduler):
        shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
        scheduler.save_pretrained(tmp_path / "other" / "scheduler")
        return load_adapter(str(tmp_path / "other"))

    return make


def test_learned_variance_is_left_out_and_time_is_scaled(folder, pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=tiny_sana.SHIFT)
    stock = pipeline(
        PROMPTS,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        output_type="latent",
        **tiny_sana.stock_arguments(2),
    ).images
    sampler = load_sampler(folder)
    adapter, shape = sampler.adapter, sampler.adapter.latent_shape(64, 64)
    cond, uncond = adapter.encode(PROMPTS), adapter.encode([""]).expand(2)
    grid, scale = adapter.stock_grid(4, shape), tiny_sana.GUIDANCE_SCALE
    ours = sample_latents(sampler, cond, uncond, [0, 1], shape, grid=grid, guidance_scale=scale)
    assert_close(ours, stock, atol=1e-4, rtol=0)


def test_prompts_are_encoded_with_the_stock_instruction_and_the_empty_one_without(folder, pipeline):
    stock = pipeline.encode_prompt(PROMPTS, True, negative_prompt="", complex_human_instruction=INSTRUCTION)
    adapter = load_adapter(folder)
    for ours, embeds, mask in (
        (adapter.encode(PROMPTS), *stock[:2]),
        (adapter.encode(["", ""]), *stock[2:]),
    ):
        num_tokens = ours.tensors["mask"].shape[1]
        assert torch.equal(ours.tensors["mask"], mask[:, :num_tokens]) and not mask[:, num_tokens:].any()
        tokens = mask.bool()
        assert_close(ours.tensors["prompt_embeds"][tokens[:, :num_tokens]], embeds[tokens], atol=1e-5, rtol=1e-5)
    bare = pipeline.encode_prompt(PROMPTS, False)[1]
    assert not torch.equal(bare, stock[1])


def test_the_grid_in_place_of_dpm_solvers_is_less_than_a_thousandth_away(folder, pipeline):
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(20)
    grid = load_adapter(folder).stock_grid(20)
    assert grid.times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-3)


def test_a_checkpoint_with_the_euler_scheduler_keeps_its_default_grid(with_scheduler):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.5)
    adapter = with_scheduler(scheduler)
    scheduler.set_timesteps(4)
    assert adapter.stock_grid(4).times == pytest.approx(scheduler.sigmas.tolist())
    assert adapter.uniform_grid(2).times == pytest.approx([1, 2.5 / 3.5, 0])


def test_a_scheduler_of_another_path_is_refused(with_scheduler):
    with pytest.raises(ValueError, match=r"its scheduler is a DPMSolver.*flow-matching"):
        with_scheduler(DPMSolverMultistepScheduler())


def test_a_student_is_sampled_at_the_models_own_size_and_no_other(folder):
    adapter = load_adapter(folder)
    grid = adapter.uniform_grid(2)
    arguments = adapter.call_arguments(adapter.student_scheduler("ode", grid), grid)
    assert adapter.latent_shape() == (4, 16, 16)
    assert json.loads(json.dumps(arguments)) == {
        "num_inference_steps": 2,
        "guidance_scale": 1,
        "height": 512,
        "width": 512,
        "use_resolution_binning": False,
    }
