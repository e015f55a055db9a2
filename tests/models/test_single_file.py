"""A checkpoint of one file becomes the pipeline that it was made from, tensor by tensor, or is refused."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from original_sdxl import unet
from single_file_sdxl import new_pipeline, one_file

from dpdmd import cli
from dpdmd.models.load import load_adapter
from dpdmd.models.single_file import content, convert_single_file
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json
from dpdmd.store.tensors import write_tensors


@pytest.fixture(scope="module")
def fine_tune() -> StableDiffusionXLPipeline:
    return new_pipeline(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """The folder of a base of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("base")
    new_pipeline(0).save_pretrained(folder)
    return str(folder)


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_tensor_of_the_file_is_in_the_folder_and_nothing_of_the_base(dtype, fine_tune, base, tmp_path):
    file = tmp_path / "fine_tune.safetensors"
    write_tensors(file, {n: t.to(dtype) if t.is_floating_point() else t for n, t in one_file(fine_tune).items()})
    out = convert_single_file(file, base, tmp_path / "model")
    loaded = StableDiffusionXLPipeline.from_pretrained(out, dtype=dtype)
    for name in PARTS:
        mine, its = getattr(fine_tune, name).state_dict(), getattr(loaded, name).state_dict()
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key].to(dtype), its[key]) for key in mine), name
    arguments = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "pt"}
    if dtype == torch.float32:
        pictures = [
            pipe(**arguments, height=32, width=48, generator=torch.Generator().manual_seed(0)).images
            for pipe in (fine_tune, loaded)
        ]
        assert torch.equal(*pictures)


def test_a_file_of_the_network_alone_takes_the_rest_from_the_base(fine_tune, base, tmp_path):
    file = tmp_path / "unet.safetensors"
    write_tensors(file, unet(fine_tune.unet.state_dict(), num_levels=2, num_resnets=1))
    loaded = StableDiffusionXLPipeline.from_pretrained(convert_single_file(file, base, tmp_path / "model"))
    origin = StableDiffusionXLPipeline.from_pretrained(base)
    for name in PARTS:
        mine, its = ((fine_tune if name == "unet" else origin), loaded)
        state = getattr(its, name).state_dict()
        assert all(torch.equal(t, state[key]) for key, t in getattr(mine, name).state_dict().items()), name


@pytest.mark.parametrize(
    "without",
    [
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "first_stage_model.decoder.conv_in.bias",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_proj.weight",
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused_and_nothing_is_written(without, fine_tune, base, tmp_path):
    tensors = one_file(fine_tune)
    del tensors[without]
    write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ValueError, match=r"x\.safetensors.*--base"):
        convert_single_file(tmp_path / "x.safetensors", base, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_with_a_tensor_too_many_is_refused(fine_tune, base, tmp_path):
    for name in ("model.diffusion_model.more.weight", "control_model.weight"):
        write_tensors(tmp_path / "x.safetensors", one_file(fine_tune) | {name: torch.ones(3)})
        with pytest.raises(ValueError, match=r"not every number|belong to no part"):
            convert_single_file(tmp_path / "x.safetensors", base, tmp_path / "model")


def test_marks_of_the_training_reach_the_scheduler(fine_tune, base, tmp_path):
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    write_tensors(tmp_path / "x.safetensors", one_file(fine_tune) | marks)
    out = convert_single_file(tmp_path / "x.safetensors", base, tmp_path / "model")
    config = read_json(out / "scheduler" / "scheduler_config.json")
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_new_takes_a_file_and_writes_the_folder_and_the_recipe_for_it(fine_tune, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tensors("tuned.safetensors", one_file(fine_tune))

    def new(*arguments):
        monkeypatch.setattr("sys.argv", ["dpdmd", "new", "tuned.safetensors", "--out", "my.toml", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().err

    code, error = new()
    assert code == 2 and "name the pipeline that it was made from" in error
    assert new("--base", base)[0] == 0
    recipe = load_recipe("my.toml")
    assert recipe.model.teacher == str(tmp_path / "tuned") and recipe.objective.anchor.target == "x0"
    with pytest.raises(ValueError, match="is a single file, and a model is a pipeline folder"):
        load_adapter("tuned.safetensors")


def test_content_is_the_same_however_numbers_are_arranged_and_no_other():
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    same = [[a.T], list(a.split(2)), [a[torch.tensor([3, 1, 0, 2, 5, 4])]], [a.view(-1)]]
    assert all(content(other) == content([a]) for other in same)
    changed = a.clone()
    changed[2, 1] += 1e-6
    swapped = a.clone()
    swapped[0, 0], swapped[0, 1] = a[0, 0] + 1, a[0, 1] - 1
    assert content([changed]) != content([a]) != content([swapped])
