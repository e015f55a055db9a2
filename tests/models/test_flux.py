"""What is special about FLUX.1: guidance that the network takes as an input, and networks that take none."""

import pytest
import tiny_flux
import torch
from diffusers import FluxPipeline
from torch.testing import assert_close
from trainers import new_trainer

from dpdmd.models.base import network_denoiser
from dpdmd.models.flux import FluxAdapter
from dpdmd.models.load import load_adapter
from dpdmd.models.sampling import student_samples
from dpdmd.recipe.schema import Recipe
from dpdmd.training.trainer import Trainer

PROMPT = "a red circle"
HEIGHT, WIDTH = tiny_flux.IMAGE_SIZE


@pytest.fixture
def dev(tiny_folder) -> str:
    return tiny_folder("flux")


@pytest.fixture
def schnell(tiny_folder) -> str:
    return tiny_folder("flux", guidance_embeds=False, dynamic_shifting=False)


def make_trainer(folder: str, tmp_path, model=None, student=None, train=None) -> Trainer:
    (tmp_path / "prompts.txt").write_text(PROMPT)
    recipe = {
        "model": {"teacher": folder, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4} | (model or {}),
        "student": {"num_steps": 2} | (student or {}),
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 1, "batch_size": 1, "fake_updates": 1} | (train or {}),
        "output": {"folder": str(tmp_path / "run")},
    }
    return new_trainer(Recipe.model_validate(recipe), load_adapter(folder))


def guidance_fed(trainer: Trainer) -> tuple[set[float | None], ...]:
    """What the networks of teacher, student and fake score are fed as guidance in one training cycle."""
    fed = set(), set(), set()

    def record(values: set[float | None]):
        def hook(module, args, kwargs):
            guidance = kwargs["guidance"]
            values.update([None] if guidance is None else guidance.tolist())

        return hook

    for role, values in zip(("teacher", "student", "fake_score"), fed, strict=True):
        trainer.network(role).register_forward_pre_hook(record(values), with_kwargs=True)
    trainer.iterate()
    return fed


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, (3.5, 3.5, 3.5)),
        ({"model": {"embedded_guidance": 2.0}}, (2.0, 2.0, 2.0)),
        ({"train": {"fake_embedded_guidance": 1.0}}, (3.5, 3.5, 1.0)),
        (
            {
                "model": {"embedded_guidance": 2.0, "guidance_scale": 1.5},
                "student": {"embedded_guidance": 0.0},
                "train": {"fake_embedded_guidance": 1.0},
            },
            (2.0, 0.0, 1.0),
        ),
    ],
)
def test_each_network_is_fed_the_guidance_of_its_role(dev, tmp_path, sections, expected):
    assert guidance_fed(make_trainer(dev, tmp_path, **sections)) == tuple({value} for value in expected)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"embedded_guidance": 3.5}}, r"model\.embedded_guidance"),
        ({"student": {"embedded_guidance": 1.0}}, r"student\.embedded_guidance"),
        ({"train": {"fake_embedded_guidance": 0.0}}, r"train\.fake_embedded_guidance"),
    ],
)
def test_guidance_for_a_network_that_takes_none_is_refused_by_its_key(schnell, tmp_path, sections, key):
    with pytest.raises(ValueError, match=f"{key} is set to .* but the network of .* takes no guidance"):
        make_trainer(schnell, tmp_path, **sections)


def test_a_network_without_guidance_embedding_is_fed_none(schnell, tmp_path):
    assert guidance_fed(make_trainer(schnell, tmp_path)) == ({None}, {None}, {None})


def samples(adapter: FluxAdapter, guidance: float | None) -> torch.Tensor:
    """Latents of a student with the teacher's weights on the uniform grid."""
    shape = adapter.latent_shape(HEIGHT, WIDTH)
    denoise = network_denoiser(adapter, adapter.load_network(), guidance)
    grid = adapter.uniform_grid(3, shape)
    return student_samples(denoise, adapter.path, [3], shape, adapter.encode([PROMPT]), grid=grid)


@pytest.mark.parametrize(("fixture", "guidance"), [("dev", 2.0), ("dev", 3.5), ("schnell", None)])
def test_the_stock_pipeline_samples_a_student_with_the_guidance_it_was_trained_for(fixture, guidance, request):
    folder = request.getfixturevalue(fixture)
    adapter = load_adapter(folder)
    shape = adapter.latent_shape(HEIGHT, WIDTH)
    grid = adapter.uniform_grid(3, shape)
    scheduler = adapter.student_scheduler("ode", grid, shape)
    pipeline = FluxPipeline.from_pretrained(folder, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        PROMPT,
        height=HEIGHT,
        width=WIDTH,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **adapter.call_arguments(scheduler, grid, guidance),
    ).images
    assert_close(samples(adapter, guidance), tiny_flux.unpacked(stock, shape), atol=1e-4, rtol=0)


def test_embedded_guidance_left_out_is_the_adapters_own_and_changes_the_sample(dev):
    adapter = load_adapter(dev)
    left_out = samples(adapter, None)
    assert torch.equal(left_out, samples(adapter, 3.5))
    assert (left_out - samples(adapter, 2.0)).abs().max() > 1e-2
    grid = adapter.uniform_grid(3)
    assert adapter.call_arguments(adapter.student_scheduler("ode", grid), grid)["guidance_scale"] == 3.5


def test_the_teachers_grid_without_dynamic_shifting_is_the_stock_pipelines(schnell):
    adapter = load_adapter(schnell)
    pipeline = FluxPipeline.from_pretrained(schnell)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=4, output_type="latent")
    assert adapter.stock_grid(4).times == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-7)


def test_the_networks_own_size_is_the_stock_pipelines(dev):
    adapter = load_adapter(dev)
    assert adapter.latent_shape() == (4, 128, 128)
    assert adapter.stock_grid(4) == adapter.stock_grid(4, (4, 128, 128)) != adapter.stock_grid(4, (4, 8, 12))
