"""A student that was trained elsewhere, judged by the same report."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from dpdmd.audit import audit
from dpdmd.evaluate.generate import generate_folder, sample_latents
from dpdmd.evaluate.stock import Call, generate_with_stock, load_pipeline
from dpdmd.models.load import built_in_teacher, load_adapter, load_sampler
from dpdmd.models.lora import merge_lora, save_lora
from dpdmd.models.student_file import LORA_FILE, StudentFile
from dpdmd.store.files import read_json
from dpdmd.store.png import to_uint8
from dpdmd.store.tensors import read_tensors, write_tensors

PROMPTS = ["a red circle", "one cross"]
SCALE, STEPS = 2.0, 2


def _pixels(folder):
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))])


def _our_pixels(sampler, seeds):
    """Guided images of the first prompt, as stock diffusers should draw them."""
    cond, uncond = sampler.adapter.encode(PROMPTS[:1]), sampler.adapter.encode([""])
    grid = sampler.adapter.stock_grid(STEPS)
    latents = sample_latents(
        sampler, cond.expand(len(seeds)), uncond.expand(len(seeds)), seeds, sampler.latent_shape(), grid=grid,
        guidance_scale=SCALE,
    )  # fmt: skip
    return to_uint8(sampler.adapter.decode(latents)).numpy().astype(int)


def test_a_stock_pipeline_draws_what_we_draw_and_goes_on(tmp_path):
    folder = str(built_in_teacher())
    options = {"call": Call(STEPS, SCALE), "progress": False}
    generate_with_stock(folder, PROMPTS[:1], out=tmp_path, seeds=[3], **options)
    manifest = generate_with_stock(folder, PROMPTS[:1], out=tmp_path, seeds=[3, 4], batch_size=2, **options)
    assert np.abs(_pixels(tmp_path) - _our_pixels(load_sampler("scenes"), [3, 4])).max() <= 1
    assert (manifest.info["pipeline"], manifest.info["guidance_scale"]) == ("StableDiffusion3Pipeline", SCALE)
    with pytest.raises(ValueError, match="made with num_inference_steps 2, not 3"):
        generate_with_stock(folder, PROMPTS[:1], out=tmp_path, seeds=[3], call=Call(3, SCALE), progress=False)


@pytest.fixture
def lora(tmp_path):
    """A folder of a random LoRA for the built-in teacher."""
    adapter = load_adapter("scenes")
    network = adapter.load_network()
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["to_q", "to_v"])
    network.add_adapter(config)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    save_lora(adapter, get_peft_model_state_dict(network), config, tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_lora_is_drawn_merged_into_its_teacher(form, lora, tmp_path):
    model = str(lora / LORA_FILE if form == "file" else lora)
    base = str(built_in_teacher())
    generate_with_stock(
        model, PROMPTS[:1], out=tmp_path / "out", seeds=[3], base=base, call=Call(STEPS, SCALE),
        progress=False,
    )  # fmt: skip
    plain = load_sampler("scenes")
    network = plain.adapter.load_network()
    merge_lora(plain.adapter, network, lora)
    expected = _our_pixels(replace(plain, network=network.eval()), [3])
    assert np.abs(_pixels(tmp_path / "out") - expected).max() <= 1
    assert np.abs(_our_pixels(plain, [3]) - expected).max() > 10
    with pytest.raises(ValueError, match="a LoRA needs the pipeline that it was made for"):
        load_pipeline(model)


@pytest.mark.slow
def test_an_audit_of_the_teacher_itself_finds_all_of_its_diversity(tmp_path):
    options = {"out": tmp_path / "audit", "prompts": PROMPTS, "images_per_prompt": 3}
    report = audit(str(built_in_teacher()), "scenes", call=Call(30, 3.5), **options)
    info = read_json(tmp_path / "audit" / "teacher" / "samples" / "manifest.json")
    assert (info["num_inference_steps"], info["guidance_scale"]) == (30, 3.5)  # or the audit compares something else
    metrics = read_json(tmp_path / "audit" / "student" / "metrics.json")
    assert metrics["diversity_share"] == pytest.approx(1, abs=0.02) and metrics["validity"] == 1
    text = report.read_text()
    assert "student" in text and "a red circle" in text
    with pytest.raises(ValueError, match="made with num_inference_steps 30, not 4"):
        audit(str(built_in_teacher()), "scenes", call=Call(4, 3.5), **options)


def test_every_argument_of_a_call_reaches_the_pipeline_and_the_manifest(tmp_path):
    """Judged by the pipeline itself, called by hand."""
    folder = str(built_in_teacher())
    sigmas, negative = (1.0, 0.6, 0.2), "a blue cross"
    call = Call(guidance_scale=SCALE, negative_prompt=negative, scheduler=f"{folder}/scheduler", sigmas=sigmas)
    info = generate_with_stock(folder, PROMPTS, out=tmp_path / "a", seeds=[3], call=call, progress=False).info
    pipeline, _ = load_pipeline(folder)
    images = pipeline(
        PROMPTS, sigmas=list(sigmas), guidance_scale=SCALE, negative_prompt=[negative] * 2, output_type="np",
        generator=[torch.Generator().manual_seed(3) for _ in PROMPTS],
    ).images  # fmt: skip
    assert np.abs(_pixels(tmp_path / "a") - (255 * images).round()).max() <= 1
    assert (info["num_inference_steps"], info["sigmas"], info["timesteps"]) == (3, list(sigmas), None)
    assert info["negative_prompt"] == negative and info["defaults"] == []
    assert info["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler" and "shift" in info["scheduler"]
    plain = generate_with_stock(folder, PROMPTS, out=tmp_path / "b", seeds=[3], call=Call(2), progress=False).info
    assert plain["defaults"] == ["guidance_scale", "negative_prompt", "scheduler"]
    assert plain["guidance_scale"] == 7.0 and plain["num_inference_steps"] == 2
    with pytest.raises(ValueError, match="diffusers has no scheduler 'NoScheduler'"):
        load_pipeline(folder, scheduler="NoScheduler")


def test_the_scheduler_beside_a_lora_is_used_and_another_can_be_named(lora):
    base = str(built_in_teacher())
    FlowMatchEulerDiscreteScheduler(shift=2.5).save_pretrained(lora / "scheduler")
    assert load_pipeline(str(lora), base)[0].scheduler.config.shift == 2.5
    named = load_pipeline(str(lora), base, scheduler="FlowMatchHeunDiscreteScheduler")[0].scheduler
    assert type(named).__name__ == "FlowMatchHeunDiscreteScheduler" and named.config.shift != 2.5


@pytest.mark.parametrize("kept", ["all", "part", "none"])
def test_how_much_of_a_lora_fits_is_told(kept, lora, caplog):
    """Layers of a deeper model are left out, with their number; a LoRA of which nothing fits is refused."""
    path, base = lora / LORA_FILE, str(built_in_teacher())
    tensors = read_tensors(path)
    number = len(tensors) // 2
    foreign = {name.replace("_blocks.", "_blocks.9"): tensor.clone() for name, tensor in tensors.items()}
    write_tensors(path, {"all": tensors, "part": tensors | foreign, "none": foreign}[kept])
    if kept == "none":
        with pytest.raises(ValueError, match=f"none of its {number} layers is one of the model's"):
            audit(str(path), base, out=lora.parent / "audit", prompts=PROMPTS)
        assert not list((lora.parent / "audit").rglob("*.png"))  # not even the teacher's
        return
    _, fit = load_pipeline(str(path), base)
    assert fit == (number, number if kept == "all" else 2 * number)
    assert (f"{number} of its {2 * number} layers fit" in caplog.text) == (kept == "part")


def test_a_students_lora_is_judged_on_another_base(tmp_path):
    """On a base with other weights the student is that base with the LoRA merged into it."""
    adapter = load_adapter("scenes")
    other = tmp_path / "other"
    shutil.copytree(built_in_teacher(), other)
    weights = other / "transformer/diffusion_pytorch_model.safetensors"
    moved = {name: tensor * 1.02 for name, tensor in read_tensors(weights).items()}
    write_tensors(weights, moved)
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["to_q", "to_v"])
    network = adapter.load_network()
    network.add_adapter(config)
    save_lora(adapter, get_peft_model_state_dict(network), config, tmp_path / "run/student")
    grid = adapter.uniform_grid(2)
    StudentFile(base="scenes", grid=grid.times).write(tmp_path / "run/student")
    options = {"seeds": [0], "progress": False}
    for name, base in (("own", None), ("on_other", str(other))):
        generate_folder(str(tmp_path / "run"), PROMPTS, out=tmp_path / name, base=base, **options)
    sampler = load_sampler(str(tmp_path / "run"), base=str(other))
    assert torch.equal(sampler.network.state_dict()["proj_out.weight"], moved["proj_out.weight"])
    assert np.abs(_pixels(tmp_path / "own") - _pixels(tmp_path / "on_other")).max() > 1
    with pytest.raises(ValueError, match="leave out scheduler, timesteps, sigmas and negative prompt"):
        audit(str(tmp_path / "run"), "scenes", out=tmp_path / "audit", prompts=PROMPTS, call=Call(negative_prompt=""))


def test_what_is_missing_is_reported_before_anything_is_drawn(tmp_path):
    for options, match in (
        ({"prompts": None}, "give --prompts FILE"),
        ({"quality": ["beauty"]}, "there is no quality score 'beauty'"),
        ({"features": [str(tmp_path / "nowhere")]}, f"{tmp_path}/nowhere does not exist"),
    ):
        with pytest.raises(ValueError, match=match):
            audit("someone/student", "someone/teacher", out=tmp_path / "out", **{"prompts": PROMPTS} | options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pickles are not read"):
        load_pipeline(str(tmp_path / "lora.bin"), "scenes")


def test_the_file_of_an_exported_lora_is_its_folder(tmp_path):
    """Its scheduler, steps and guidance are in the folder, and the base's own would draw something else."""
    from dpdmd.audit import _with_its_export
    from dpdmd.models.student_file import StudentFile

    file = tmp_path / LORA_FILE
    file.touch()
    assert _with_its_export(str(file)) == str(file)
    StudentFile(base="scenes", grid=(1.0, 0.5, 0.0)).write(tmp_path)
    assert _with_its_export(str(file)) == str(tmp_path)


def test_the_scheduler_beside_the_file_of_a_lora_is_used(lora):
    FlowMatchEulerDiscreteScheduler(shift=2.5).save_pretrained(lora / "scheduler")
    pipeline, _ = load_pipeline(str(lora / LORA_FILE), str(built_in_teacher()))
    assert pipeline.scheduler.config.shift == 2.5
