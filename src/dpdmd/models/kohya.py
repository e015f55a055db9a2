"""Names of a LoRA for Stable Diffusion's U-Nets, as kohya's tools and ComfyUI read them: SDXL's in its own layout.

The original U-Net numbers its blocks in the order in which they are called; diffusers counts them level by level:

    diffusers                            original layout
    down_blocks.I.attentions.J           input_blocks.(1 + I (L + 1) + J).1
    mid_block.attentions.0               middle_block.1
    up_blocks.I.attentions.J             output_blocks.(I (L + 1) + J).1

with L resnets per level (`layers_per_block`). Resnets are the entry before their attention. What is in an attention
block has the same name in both.
"""

import re

import torch
from torch import Tensor

# Outside of the blocks: diffusers -> original.
SINGLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(attentions|resnets)\.(\d+)\.(.+)")
PARTS = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def lora_names(layers: dict[str, Tensor], layers_per_block: int | None = None) -> dict[str, Tensor]:
    """A LoRA of the diffusers U-Net, lora_B @ lora_A, under kohya's names, each module with its rank as `.alpha`.

    layers: "MODULE.lora_A.weight" and "MODULE.lora_B.weight". layers_per_block: of SDXL's U-Net; None for that of
    Stable Diffusion 1 and 2, whose modules kohya's tools call as diffusers does. Raises ValueError for a module that
    has no such name.
    """
    named = {}
    for name, tensor in layers.items():
        module, _, part = name.rpartition(".lora_")
        place = module if layers_per_block is None else original_name(module, layers_per_block)
        place = "lora_unet_" + place.replace(".", "_")
        part = f"lora_{part}"
        named[f"{place}.{PARTS[part]}"] = tensor
        if part == "lora_A.weight":
            named[f"{place}.alpha"] = torch.tensor(float(len(tensor)))
    return named


def original_name(module: str, layers_per_block: int) -> str:
    """The name of a module of the diffusers U-Net in the original layout."""
    if module in SINGLE:
        return SINGLE[module]
    match = BLOCK.fullmatch(module)
    if match is None:
        raise ValueError(f"a LoRA of {module} cannot be exported: it has no name in the original layout of SDXL")
    part, level, kind, index, rest = match.groups()
    level, index, is_attention = int(level or 0), int(index), kind == "attentions"
    place = {
        "down_blocks": f"input_blocks.{1 + level * (layers_per_block + 1) + index}.{int(is_attention)}",
        "mid_block": f"middle_block.{1 if is_attention else 2 * index}",
        "up_blocks": f"output_blocks.{level * (layers_per_block + 1) + index}.{int(is_attention)}",
    }
    inner = rest.replace("time_emb_proj", "emb_layers.1") if kind == "resnets" else rest
    return f"{place[part]}.{inner}"
