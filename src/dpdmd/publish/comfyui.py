"""How ComfyUI draws a student: a workflow in its API format, which its window loads and its server runs.

The `simple` scheduler takes the noise levels 1, 1 - 1/N, ..., 1/N of a flow, shifted by a ModelSampling node: the
trained uniform grid. Of discrete timesteps it takes the trailing ones. It picks them from a table of 1,000, so that
this is exact where N divides 1,000; every other grid is written out as its noise levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpdmd.method.grids import Grid
from dpdmd.method.paths import FlowPath, Path
from dpdmd.method.rollout import StudentKind
from dpdmd.publish.comfyui_layout import COMFYUI_FILE, TABLES

WORKFLOW_FILE = "comfyui_workflow.json"
NONE = "There is no workflow for ComfyUI of this kind of model."
# Why, where more is known.
REASONS = {
    "SanaPipeline": "ComfyUI has no nodes of its own for this kind of model.",
}
UNREADABLE = (
    "There is no workflow: ComfyUI does not read a network of this kind as diffusers saves it. "
    "`dpdmd export --one-file` also writes it as ComfyUI reads it, and a LoRA of `dpdmd export --lora` works there."
)
TABLE = 1000  # noise levels that the `simple` scheduler picks from
MOST_NOISE = 4518.76  # sigma / alpha that stands for pure noise of a schedule that ends there (zero SNR)
Node = dict[str, Any]
Workflow = dict[str, Node]


@dataclass(frozen=True)
class Family:
    """The nodes of one family.

    text_encoders: class and inputs of the node that loads them. sampling: class of the node that shifts; None for a
    family without a shift. latent: class of the node that makes the empty image. prompt: class of the node that encodes
    the prompt, the name of that input, and its other inputs.
    """

    text_encoders: tuple[str, dict[str, str]]
    sampling: str | None
    latent: str = "EmptySD3LatentImage"
    prompt: tuple[str, str, dict[str, str]] = ("CLIPTextEncode", "text", {})


CHECKPOINT = "CheckpointLoaderSimple"  # loads a network, its text encoders and its autoencoder


def _clip(name: str, kind: str) -> tuple[str, dict[str, str]]:
    return "CLIPLoader", {"clip_name": f"{name}.safetensors", "type": kind}


def _checkpoint(name: str) -> tuple[str, dict[str, str]]:
    return CHECKPOINT, {"ckpt_name": f"{name}.safetensors"}


# The values of inputs are names of files as ComfyUI's own templates have them; a user chooses their own.
FAMILIES = {
    "ChromaPipeline": Family(_clip("t5xxl_fp16", "chroma"), "ModelSamplingFlux"),
    "ErnieImagePipeline": Family(_clip("ministral-3-3b", "flux2"), "ModelSamplingSD3", "EmptyFlux2LatentImage"),
    "Flux2KleinPipeline": Family(_clip("qwen_3_4b", "flux2"), "ModelSamplingFlux", "EmptyFlux2LatentImage"),
    "FluxPipeline": Family(
        (
            "DualCLIPLoader",
            {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
        ),
        "ModelSamplingFlux",
    ),
    "Krea2Pipeline": Family(_clip("qwen3vl_4b", "krea2"), "ModelSamplingFlux"),
    "LongCatImagePipeline": Family(_clip("qwen_2.5_vl_7b", "longcat_image"), "ModelSamplingFlux"),
    "Lumina2Pipeline": Family(
        _checkpoint("lumina_2"),
        "ModelSamplingAuraFlow",
        prompt=("CLIPTextEncodeLumina2", "user_prompt", {"system_prompt": "superior"}),
    ),
    "PixArtSigmaPipeline": Family(_clip("t5xxl_fp16", "pixart"), None, "EmptyLatentImage"),
    "QwenImagePipeline": Family(_clip("qwen_2.5_vl_7b", "qwen_image"), "ModelSamplingAuraFlow"),
    "StableDiffusion3Pipeline": Family(
        (
            "TripleCLIPLoader",
            {
                "clip_name1": "clip_l.safetensors",
                "clip_name2": "clip_g.safetensors",
                "clip_name3": "t5xxl_fp16.safetensors",
            },
        ),
        "ModelSamplingSD3",
    ),
    "StableDiffusionPipeline": Family(_checkpoint("base"), None, "EmptyLatentImage"),
    "StableDiffusionXLPipeline": Family(_checkpoint("sd_xl_base_1.0"), None, "EmptyLatentImage"),
    "ZImagePipeline": Family(_clip("qwen_3_4b", "lumina2"), "ModelSamplingAuraFlow"),
}


def why_none(pipeline: str) -> str:
    """Why a student of this pipeline has no workflow, in words."""
    return UNREADABLE if pipeline in FAMILIES else REASONS.get(pipeline, NONE)


def trained_shift(grid: Grid) -> float:
    """The shift s of a uniform grid, whose last step starts at s / (N + s - 1); 1 for a single step."""
    last = grid.times[-2]
    return 1.0 if grid.num_steps == 1 else last * (grid.num_steps - 1) / (1 - last)


def noise_levels(path: Path, grid: Grid) -> list[float]:
    """The grid as ComfyUI counts noise: t of a flow, else sigma / alpha."""
    if isinstance(path, FlowPath):
        return list(grid.times)
    times = torch.tensor(grid.times, dtype=torch.float64)
    return (path.sigma(times) / path.alpha(times)).clamp(max=MOST_NOISE).tolist()


def workflow(
    pipeline: str,
    grid: Grid,
    path: Path,
    *,
    is_uniform: bool,
    kind: StudentKind,
    size: tuple[int, int],
    prompt: str,
    embedded_guidance: float | None,
    is_lora: bool,
    one_file: bool = False,
    v_prediction: bool = False,
    zero_snr: bool = False,
    loras: Sequence[tuple[str, float]] = (),
) -> Workflow | None:
    """The workflow of a student; None for one that ComfyUI does not draw by itself (`why_none`).

    pipeline: name of the stock pipeline's class. is_uniform: the number of steps alone gives the grid. size: height
    and width in pixels. is_lora: the export is a LoRA for its base, otherwise a network. one_file: of a network,
    whether it also leaves as ComfyUI reads it, where that is another layout. v_prediction, zero_snr: of a noise
    schedule. loras: (name, weight) of those that the exported one needs beside it. Files are named
    `student.safetensors`, or COMFYUI_FILE in another layout, and `base.safetensors`.
    """
    family = FAMILIES.get(pipeline)
    if family is None or not (is_lora or one_file or pipeline not in TABLES):
        return None
    height, width = size
    file = COMFYUI_FILE if pipeline in TABLES and not is_lora else "student.safetensors"
    nodes = _loaders(family, file, is_lora=is_lora, loras=loras)
    model = nodes.pop("_model")
    is_simple = is_uniform and TABLE % grid.num_steps == 0
    sampling = _sampling_node(family.sampling, grid, size, is_simple=is_simple) or (
        _v_prediction(zero_snr) if v_prediction else None
    )
    if sampling is not None:
        sampling["inputs"]["model"] = model
        nodes["sampling"], model = sampling, ["sampling", 0]
    encode, name, inputs = family.prompt
    nodes["prompt"] = {"class_type": encode, "inputs": {name: prompt, "clip": nodes.pop("_clip"), **inputs}}
    cond = ["prompt", 0]
    if embedded_guidance is not None:
        nodes["guidance"] = {
            "class_type": "FluxGuidance",
            "inputs": {"conditioning": cond, "guidance": embedded_guidance},
        }
        cond = ["guidance", 0]
    latent = {"width": width, "height": height, "batch_size": 1}
    nodes |= {
        "latent": {"class_type": family.latent, "inputs": latent},
        "steps": _steps(model, grid.num_steps, None if is_simple else noise_levels(path, grid)),
    }
    nodes |= _samplers(kind, model, cond, num_steps=grid.num_steps)
    nodes |= {
        "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampled", 0], "vae": nodes.pop("_vae")}},
        "saved": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "student"}},
    }
    return nodes


def _steps(model: list, num_steps: int, levels: list[float] | None) -> Node:
    """The node that gives the noise levels: by the number of steps, or written out, in digits without an exponent."""
    if levels is None:
        inputs = {"model": model, "scheduler": "simple", "steps": num_steps, "denoise": 1.0}
        return {"class_type": "BasicScheduler", "inputs": inputs}
    text = ", ".join(f"{level:.9f}".rstrip("0").rstrip(".") for level in levels)
    return {"class_type": "ManualSigmas", "inputs": {"sigmas": text}}


def _samplers(kind: StudentKind, model: list, cond: list, *, num_steps: int) -> Workflow:
    """The nodes that sample: Euler's steps, LCM's, which add fresh noise, or LCM's for the last two alone."""

    def sampled(sampler: str, sigmas: list, latent: list, *, add_noise: bool) -> Node:
        inputs = {
            "model": model,
            "add_noise": add_noise,
            "noise_seed": 0,
            "cfg": 1.0,
            "positive": cond,
            "negative": cond,  # not called: cfg 1 is off
            "sampler": [sampler, 0],
            "sigmas": sigmas,
            "latent_image": latent,
        }
        return {"class_type": "SamplerCustom", "inputs": inputs}

    def select(name: str) -> Node:
        return {"class_type": "KSamplerSelect", "inputs": {"sampler_name": name}}

    empty = ["latent", 0]
    if kind != "renoise_last" or num_steps < 3:
        name = "lcm" if kind == "renoise" else "euler"
        return {"sampler": select(name), "sampled": sampled("sampler", ["steps", 0], empty, add_noise=True)}
    return {
        "split": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["steps", 0], "step": num_steps - 2}},
        "first_sampler": select("euler"),
        "first": sampled("first_sampler", ["split", 0], empty, add_noise=True),
        "sampler": select("lcm"),
        "sampled": sampled("sampler", ["split", 1], ["first", 0], add_noise=False),
    }


def settings(flow: Workflow) -> list[str]:
    """The workflow in short, for a reader who builds it by hand."""
    sampling = flow.get("sampling")
    shift, steps = [], flow["steps"]["inputs"]
    if sampling is not None:
        values = {name: value for name, value in sampling["inputs"].items() if name != "model"}
        shift = [f"{sampling['class_type']}: " + ", ".join(f"{name} {_shown(value)}" for name, value in values.items())]
    guidance = flow.get("guidance")
    embedded = [] if guidance is None else [f"FluxGuidance: {guidance['inputs']['guidance']:g}"]
    loras = [node["inputs"] for name, node in flow.items() if name.startswith("teacher_lora_")]
    return [
        *(f"LoraLoaderModelOnly: {lora['lora_name']}, strength_model {lora['strength_model']:g}" for lora in loras),
        *shift,
        *embedded,
        f"ManualSigmas: {steps['sigmas']}" if "sigmas" in steps else f"BasicScheduler: simple, {steps['steps']} steps",
        *_sampling(flow),
    ]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value).lower()


def _sampling(flow: Workflow) -> list[str]:
    name = flow["sampler"]["inputs"]["sampler_name"]
    if "split" not in flow:
        return [f"KSamplerSelect: {name}", "SamplerCustom: cfg 1"]
    first = flow["first_sampler"]["inputs"]["sampler_name"]
    return [
        f"SplitSigmas: step {flow['split']['inputs']['step']}",
        f"KSamplerSelect: {first}; SamplerCustom: cfg 1, the high sigmas",
        f"KSamplerSelect: {name}; SamplerCustom: cfg 1, add_noise off, the low sigmas, the latent of the one before",
    ]


def _loaders(family: Family, file: str, *, is_lora: bool, loras: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The nodes that load files, and under _model, _clip and _vae the outputs that the rest takes from them."""
    encoders, inputs = family.text_encoders
    nodes: dict[str, Any] = {"texts": {"class_type": encoders, "inputs": dict(inputs)}}
    if encoders == CHECKPOINT:
        outputs = {"_model": ["texts", 0], "_clip": ["texts", 1], "_vae": ["texts", 2]}
    else:
        nodes["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "vae.safetensors"}}
        outputs = {"_clip": ["texts", 0], "_vae": ["vae", 0]}
    if "_model" not in outputs or not is_lora:
        name = "base.safetensors" if is_lora else file
        nodes["network"] = {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
        outputs["_model"] = ["network", 0]
    named = {f"teacher_lora_{i}": lora for i, lora in enumerate(loras, start=1)}
    if is_lora:
        named["lora"] = (file, 1.0)
    for node, (name, weight) in named.items():
        lora = {"model": outputs["_model"], "lora_name": name, "strength_model": weight}
        nodes[node] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
        outputs["_model"] = [node, 0]
    return nodes | outputs


def _sampling_node(sampling: str | None, grid: Grid, size: tuple[int, int], *, is_simple: bool) -> Node | None:
    """The node that shifts a flow's noise levels; None where they are written out, which no shift changes.

    FLUX's takes mu = log(shift) at two sizes: the same at both, for every size.
    """
    if sampling is None or not is_simple:
        return None
    shift = trained_shift(grid)
    inputs: dict[str, Any] = {"shift": round(shift, 6)}
    if sampling == "ModelSamplingFlux":
        mu = round(math.log(shift), 6)
        inputs = {"max_shift": mu, "base_shift": mu, "width": size[1], "height": size[0]}
    return {"class_type": sampling, "inputs": inputs}


def _v_prediction(zero_snr: bool) -> Node:
    """The node that says how a U-Net predicts, which its file does not."""
    return {"class_type": "ModelSamplingDiscrete", "inputs": {"sampling": "v_prediction", "zsnr": zero_snr}}
