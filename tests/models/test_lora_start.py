"""A LoRA student that starts from a LoRA computes what that LoRA does, before its first update."""

from pathlib import Path

import pytest
import torch
from families import taking_turns
from torch.testing import assert_close
from trainers import new_trainer, train

from dpdmd.models.base import empty_network, network_denoiser
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import LORA_FILE
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.tensors import read_tensors, write_tensors

PROMPTS = ["a red circle", "one cross"]


def make_recipe(folder: str, tmp_path, size: tuple[int, int], **sections) -> Recipe:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    data = {
        "model": {"teacher": folder, "num_inference_steps": 4, "height": size[0], "width": size[1]},
        "student": {"num_steps": 2},
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 1, "batch_size": 1, "fake_updates": 1, "learning_rate": 3e-2},
        "lora": {"roles": ["student", "fake_score"], "rank": 4, "alpha": 6.0},
        "output": {"folder": str(tmp_path / "run")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def run(family, folder, tmp_path_factory) -> Path:
    """A finished run of a LoRA student of rank 4 at scale 1.5."""
    recipe = make_recipe(folder, tmp_path_factory.mktemp("start"), family.IMAGE_SIZE)
    return train(recipe, load_adapter(folder), progress=False)


def prediction(denoise, adapter, shape):
    x_t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return denoise(x_t, torch.full((2,), 0.8), adapter.encode(PROMPTS)).x0


@taking_turns("form", {"run": "run", "file": "file"})
def test_the_student_starts_as_the_lora_draws_and_the_fake_score_as_the_teacher(form, family, run, folder, tmp_path):
    start = str(run) if form == "run" else str(run / "student" / LORA_FILE)
    recipe = make_recipe(folder, tmp_path, family.IMAGE_SIZE, student={"start": start}, lora={"rank": 6, "alpha": 3.0})
    adapter = load_adapter(folder)
    trainer = new_trainer(recipe, adapter)
    shape = trainer.plan.latent_shape
    sampler = load_sampler(str(run))
    with torch.no_grad():
        mine = prediction(trainer.denoisers.student, adapter, shape)
        its = prediction(network_denoiser(adapter, sampler.network), adapter, shape)
        teacher = prediction(trainer.denoisers.teacher, adapter, shape)
        fake = prediction(trainer.denoisers.fake_score, adapter, shape)
    assert_close(mine, its, rtol=1e-4, atol=1e-4)  # merged there, a separate product here
    assert torch.equal(teacher, fake) and (mine - teacher).abs().max() > 1e-2
    assert all(p.requires_grad for p in trainer.roles.parameters("student").values())
    trainer.iterate()
    with torch.no_grad():
        assert not torch.equal(mine, prediction(trainer.denoisers.student, adapter, shape))


@pytest.fixture(scope="module")
def sdxl_run(tiny_folder, tmp_path_factory) -> Path:
    """A run of an SDXL student of rank 4."""
    folder = tiny_folder("sdxl")
    return train(make_recipe(folder, tmp_path_factory.mktemp("sdxl"), (32, 48)), load_adapter(folder), progress=False)


def start_with(start, tiny_folder, tmp_path, **sections):
    folder = tiny_folder("sdxl")
    recipe = make_recipe(folder, tmp_path, (32, 48), student={"start": str(start)}, **sections)
    return new_trainer(recipe, load_adapter(folder))


def test_somebodys_file_in_kohyas_names_is_read_with_its_scale(sdxl_run, tiny_folder, tmp_path):
    """kohya's names in diffusers' layout: down, up and alpha of each layer, whose scale is alpha / rank."""
    layers = read_tensors(sdxl_run / "student" / LORA_FILE)
    other = {}
    for name, tensor in layers.items():
        module, _, half = name.removeprefix("unet.").rpartition(".lora_")
        key = f"lora_unet_{module.replace('.', '_')}"
        other[f"{key}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = tensor
        other[f"{key}.alpha"] = torch.tensor(6.0)
    write_tensors(tmp_path / "theirs.safetensors", other)
    starts = tmp_path / "theirs.safetensors", sdxl_run
    mine, its = (start_with(start, tiny_folder, tmp_path).denoisers.student for start in starts)
    adapter = load_adapter(tiny_folder("sdxl"))
    shape = adapter.latent_shape(32, 48)
    with torch.no_grad():
        assert_close(prediction(mine, adapter, shape), prediction(its, adapter, shape), rtol=1e-5, atol=1e-5)


def test_zeros_that_fill_a_file_take_neither_rank_nor_layer(sdxl_run, tiny_folder, tmp_path):
    """As a file has them that must name layers which were not trained; without a header its scale is 1."""
    adapter, filled = load_adapter(tiny_folder("sdxl")), {}
    for name, tensor in read_tensors(sdxl_run / "student" / LORA_FILE).items():
        is_down = name.endswith("lora_A.weight")
        more = torch.ones_like(tensor) if is_down else torch.zeros_like(tensor)
        filled[name] = torch.cat([tensor if is_down else 1.5 * tensor, more], dim=int(not is_down))
    other = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    rows, columns = empty_network(adapter).get_submodule(other).weight.shape
    filled |= {
        f"unet.{other}.lora_A.weight": torch.zeros(1, columns),
        f"unet.{other}.lora_B.weight": torch.zeros(rows, 1),
    }
    write_tensors(tmp_path / "filled.safetensors", filled)
    starts = tmp_path / "filled.safetensors", sdxl_run
    mine, its = (start_with(start, tiny_folder, tmp_path).denoisers.student for start in starts)
    shape = adapter.latent_shape(32, 48)
    with torch.no_grad():
        assert_close(prediction(mine, adapter, shape), prediction(its, adapter, shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 3}, r"has rank 4, more than lora\.rank 3; set lora\.rank = 4"),
        (
            {"targets": ["to_q"]},
            r"layers that have no adapter.*set lora\.targets to \['to_k', 'to_out\.0', 'to_q', 'to_v'\]",
        ),
    ],
)
def test_adapters_that_cannot_hold_the_lora_are_refused_with_the_settings_that_can(
    lora, message, sdxl_run, tiny_folder, tmp_path
):
    with pytest.raises(ValueError, match=message):
        start_with(sdxl_run, tiny_folder, tmp_path, lora=lora)


def test_what_is_no_lora_for_the_network_is_refused(sdxl_run, tiny_folder, tmp_path):
    write_tensors(tmp_path / "other.safetensors", {"transformer.to_q.lora_A.weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"student\.start: the LoRA .*other\.safetensors does not fit .*none of its 1"):
        start_with(tmp_path / "other.safetensors", tiny_folder, tmp_path)
    adapter = load_adapter(tiny_folder("sdxl"))
    (tmp_path / "x.bin").touch()
    (tmp_path / "empty").mkdir()
    for start, message in (("x.bin", "must be a .safetensors file"), ("empty", "holds no LoRA")):
        recipe = make_recipe(tiny_folder("sdxl"), tmp_path, (32, 48), student={"start": str(tmp_path / start)})
        with pytest.raises(ValueError, match=message):
            resolve(recipe, adapter)
