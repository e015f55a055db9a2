"""The workflow for ComfyUI: whole, linked, and on the trained grid."""

import math
import re
from typing import get_args

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.paths import FlowPath, VPPath
from dpdmd.method.rollout import StudentKind
from dpdmd.publish.comfyui import FAMILIES, MOST_NOISE, noise_levels, settings, trained_shift, why_none, workflow
from dpdmd.publish.comfyui_layout import TABLES

# The outputs of each class of node, by the node documentation of ComfyUI.
OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"), "UNETLoader": ("MODEL",), "LoraLoaderModelOnly": ("MODEL",),
    "CLIPLoader": ("CLIP",), "DualCLIPLoader": ("CLIP",), "TripleCLIPLoader": ("CLIP",), "VAELoader": ("VAE",),
    "ModelSamplingSD3": ("MODEL",), "ModelSamplingFlux": ("MODEL",), "ModelSamplingAuraFlow": ("MODEL",),
    "CLIPTextEncode": ("CONDITIONING",), "CLIPTextEncodeLumina2": ("CONDITIONING",),
    "EmptyFlux2LatentImage": ("LATENT",),
    "FluxGuidance": ("CONDITIONING",), "EmptyLatentImage": ("LATENT",),
    "EmptySD3LatentImage": ("LATENT",), "KSamplerSelect": ("SAMPLER",), "BasicScheduler": ("SIGMAS",),
    "ManualSigmas": ("SIGMAS",), "ModelSamplingDiscrete": ("MODEL",),
    "SplitSigmas": ("SIGMAS", "SIGMAS"), "SamplerCustom": ("LATENT", "LATENT"),
    "VAEDecode": ("IMAGE",), "SaveImage": (),
}  # fmt: skip
# What an input of this name takes, if it is linked.
INPUTS = {
    "model": "MODEL", "clip": "CLIP", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING",
    "conditioning": "CONDITIONING", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT",
    "samples": "LATENT", "images": "IMAGE",
}  # fmt: skip


FLOW = FlowPath()


def flow(pipeline, *, shift=3.0, num_steps=4, grid=None, path=FLOW, is_lora=True, kind="ode", **options):
    return workflow(
        pipeline,
        grid or uniform_grid(num_steps, shift=shift),
        path,
        is_uniform=grid is None,
        kind=kind,
        size=(768, 1024),
        prompt="a red circle",
        embedded_guidance=3.5 if pipeline == "FluxPipeline" else None,
        is_lora=is_lora,
        **options,
    )


@pytest.mark.parametrize("kind", get_args(StudentKind))
@pytest.mark.parametrize("is_lora", [True, False])
@pytest.mark.parametrize("grid", [None, Grid((1.0, 0.8, 0.3, 0.1, 0.0))])
@pytest.mark.parametrize("pipeline", FAMILIES)
def test_every_link_leads_to_an_output_of_its_type_and_every_node_is_used(pipeline, grid, is_lora, kind):
    assert (flow(pipeline, grid=grid, is_lora=is_lora, kind=kind) is None) == (pipeline in TABLES and not is_lora)
    is_v = pipeline == "StableDiffusionXLPipeline"
    nodes = flow(pipeline, grid=grid, is_lora=is_lora, kind=kind, v_prediction=is_v, one_file=True)
    used = {"saved"}
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, number = value
                assert OUTPUTS[nodes[source]["class_type"]][number] == INPUTS[name]
                used.add(source)
            else:
                assert name not in INPUTS or node["class_type"] == "ManualSigmas"  # whose sigmas are a text
    assert used == set(nodes)
    assert ("lora" in nodes) == is_lora
    assert nodes["latent"]["inputs"] == {"width": 1024, "height": 768, "batch_size": 1}
    assert nodes["sampled"]["inputs"]["cfg"] == 1
    assert (nodes["steps"]["inputs"].get("scheduler") == "simple") == (grid is None)


def test_the_shift_is_the_trained_one():
    for shift, num_steps in ((3.0, 4), (0.5, 2), (math.exp(1.15), 8)):
        assert trained_shift(uniform_grid(num_steps, shift=shift)) == pytest.approx(shift)
    assert flow("StableDiffusion3Pipeline")["sampling"]["inputs"]["shift"] == 3
    assert flow("ZImagePipeline", shift=1.7)["sampling"]["inputs"]["shift"] == 1.7
    inputs = flow("FluxPipeline", shift=math.exp(1.15))["sampling"]["inputs"]
    # FLUX's node draws a line between two sizes, here a level one: the trained grid at every size.
    assert inputs["max_shift"] == inputs["base_shift"] == 1.15
    assert "sampling" not in flow("StableDiffusionXLPipeline")


def levels(nodes) -> list[float]:
    """What the node makes of its text: every number in it, without exponents."""
    assert nodes["steps"]["class_type"] == "ManualSigmas"
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", nodes["steps"]["inputs"]["sigmas"])]


def test_noise_levels_are_written_out_where_the_number_of_steps_does_not_give_them_exactly():
    """The simple scheduler picks step i of N from a table of 1,000 at 1,000 - int(1,000 i / N)."""
    times = (0.98, 0.6, 0.55, 1.25e-05, 0.0)
    nodes = flow("FluxPipeline", grid=Grid(times))
    assert levels(nodes) == pytest.approx(times, abs=1e-9) and "sampling" not in nodes
    assert "ManualSigmas: 0.98, 0.6, 0.55, 0.0000125, 0" in settings(nodes)
    for num_steps in range(1, 9):
        exact = all((1000 - int(i * 1000 / num_steps)) * num_steps == 1000 * (num_steps - i) for i in range(num_steps))
        nodes = flow("StableDiffusion3Pipeline", num_steps=num_steps)
        assert (nodes["steps"]["class_type"] == "BasicScheduler") == exact == ("sampling" in nodes)
        if not exact:
            assert levels(nodes) == pytest.approx(uniform_grid(num_steps, shift=3.0).times, abs=1e-9)


def test_the_noise_of_sdxl_is_counted_in_units_of_the_picture():
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    path = VPPath(scheduler.alphas_cumprod)
    nodes = flow("StableDiffusionXLPipeline", grid=Grid((1.0, 0.5, 0.1, 0.0)), path=path)
    stock = scheduler.sigmas.flip(0)[1:].tolist()  # of timesteps 0 ... 999
    assert levels(nodes) == pytest.approx([stock[999], stock[499], stock[99], 0], rel=1e-5)
    assert max(noise_levels(VPPath(torch.linspace(1, 0, 1001)[1:]), Grid((1.0, 0.0)))) == MOST_NOISE


def test_a_network_of_sdxl_that_predicts_v_is_said_to_do_so():
    nodes = flow("StableDiffusionXLPipeline", v_prediction=True, zero_snr=True)
    assert nodes["sampling"]["inputs"] == {"sampling": "v_prediction", "zsnr": True, "model": ["lora", 0]}
    assert nodes["sampled"]["inputs"]["model"] == ["sampling", 0]
    assert settings(nodes)[0] == "ModelSamplingDiscrete: sampling v_prediction, zsnr true"


def test_the_sampler_takes_the_students_steps():
    assert flow("FluxPipeline")["sampler"]["inputs"]["sampler_name"] == "euler"
    assert flow("FluxPipeline", kind="renoise")["sampler"]["inputs"]["sampler_name"] == "lcm"


def test_the_last_two_steps_of_a_student_that_renews_its_noise_there_are_another_samplers():
    nodes = flow("FluxPipeline", kind="renoise_last", num_steps=5)
    assert nodes["split"]["inputs"] == {"sigmas": ["steps", 0], "step": 3}
    first, last = nodes["first"]["inputs"], nodes["sampled"]["inputs"]
    assert [nodes[part["sampler"][0]]["inputs"]["sampler_name"] for part in (first, last)] == ["euler", "lcm"]
    assert (first["sigmas"], last["sigmas"]) == (["split", 0], ["split", 1])
    assert (first["add_noise"], last["add_noise"]) == (True, False)
    assert last["latent_image"] == ["first", 0] and nodes["decoded"]["inputs"]["samples"] == ["sampled", 0]
    assert settings(nodes)[-3:] == [
        "SplitSigmas: step 3",
        "KSamplerSelect: euler; SamplerCustom: cfg 1, the high sigmas",
        "KSamplerSelect: lcm; SamplerCustom: cfg 1, add_noise off, the low sigmas, the latent of the one before",
    ]


def test_the_settings_in_short():
    assert settings(flow("FluxPipeline", shift=math.exp(1.15))) == [
        "ModelSamplingFlux: max_shift 1.15, base_shift 1.15, width 1024, height 768",
        "FluxGuidance: 3.5",
        "BasicScheduler: simple, 4 steps",
        "KSamplerSelect: euler",
        "SamplerCustom: cfg 1",
    ]


@pytest.mark.parametrize(
    ("pipeline", "sampling", "latent"),
    [
        ("Flux2KleinPipeline", "ModelSamplingFlux", "EmptyFlux2LatentImage"),
        ("ErnieImagePipeline", "ModelSamplingSD3", "EmptyFlux2LatentImage"),
        ("Krea2Pipeline", "ModelSamplingFlux", "EmptySD3LatentImage"),
        ("ChromaPipeline", "ModelSamplingFlux", "EmptySD3LatentImage"),
        ("Lumina2Pipeline", "ModelSamplingAuraFlow", "EmptySD3LatentImage"),
        ("StableDiffusionPipeline", None, "EmptyLatentImage"),
        ("PixArtSigmaPipeline", None, "EmptyLatentImage"),
    ],
)
def test_each_family_has_its_own_shift_and_empty_image(pipeline, sampling, latent):
    nodes = flow(pipeline)
    assert nodes.get("sampling", {}).get("class_type") == sampling and nodes["latent"]["class_type"] == latent


def test_luminas_prompt_comes_after_its_system_prompt():
    """The stock pipeline's is the one that ComfyUI calls superior."""
    prompt = flow("Lumina2Pipeline")["prompt"]
    assert prompt["inputs"] == {"user_prompt": "a red circle", "system_prompt": "superior", "clip": ["texts", 1]}
    assert prompt["class_type"] == "CLIPTextEncodeLumina2"


def test_what_comfyui_does_not_draw_by_itself_has_no_workflow_and_a_reason():
    assert flow("SanaPipeline") is None and flow("SanaPipeline", is_lora=False) is None
    assert "no nodes" in why_none("SanaPipeline")
    assert flow("Krea2Pipeline", is_lora=False) is None and "--one-file" in why_none("Krea2Pipeline")
    network = flow("Krea2Pipeline", is_lora=False, one_file=True)["network"]
    assert network["inputs"]["unet_name"] == "comfyui_student.safetensors"
    assert flow("ErnieImagePipeline", is_lora=False)["network"]["inputs"]["unet_name"] == "student.safetensors"
