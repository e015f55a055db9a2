"""The tensors of a diffusers SDXL pipeline under the names that Stability AI's checkpoints give them.

Written down from the layout of the checkpoints, block by block, and not from diffusers' converter, which it judges.
"""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}


def unet(state: Tensors, *, num_levels: int, num_resnets: int) -> Tensors:
    """`model.diffusion_model.`: levels of `num_resnets` resnets each, an attention where the state has one."""
    places = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    places |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    places |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    places |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    places |= {"mid_block.resnets.1": "middle_block.2"}
    number = 1
    for level in range(num_levels):
        for i in range(num_resnets):
            places[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level in range(num_levels):
        for i in range(num_resnets + 1):
            places[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        has_attention = any(name.startswith(f"up_blocks.{level}.attentions") for name in state)
        place = f"output_blocks.{number - 1}.{2 if has_attention else 1}"
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"{place}.conv"
    return {f"model.diffusion_model.{_moved(name, places, RESNET)}": tensor for name, tensor in state.items()}


def vae(state: Tensors, *, num_levels: int) -> Tensors:
    """`first_stage_model.`: the decoder's levels are counted from the picture, its attention is a convolution."""
    places = {}
    for half, blocks, level in (("encoder", "down", 0), ("decoder", "up", 1)):
        places |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in (0, 1)}
        places |= {f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1", f"{half}.conv_norm_out": f"{half}.norm_out"}
        for n in range(num_levels):
            theirs = num_levels - 1 - n if level else n
            source, target = f"{half}.{blocks}_blocks.{n}", f"{half}.{blocks}.{theirs}"
            places |= {f"{source}.resnets.{i}": f"{target}.block.{i}" for i in range(4)}
            places[f"{source}.{blocks}samplers.0.conv"] = f"{target}.{blocks}sample.conv"
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
    moved = {}
    for name, tensor in state.items():
        is_projection = ".attentions." in name and tensor.ndim == 2
        key = _moved(name, places, VAE_RESNET | attention)
        moved[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_projection else tensor
    return moved


def clip(state: Tensors) -> Tensors:
    """`conditioner.embedders.0.`: CLIP as transformers had it, with the wrapper "text_model" and its position ids."""
    prefix = "conditioner.embedders.0.transformer."
    moved = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    length = moved[f"{prefix}text_model.embeddings.position_embedding.weight"].shape[0]
    return moved | {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip(state: Tensors, *, num_layers: int) -> Tensors:
    """`conditioner.embedders.1.`: OpenCLIP, whose queries, keys and values are one matrix, and a temperature."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    prefix = "conditioner.embedders.1.model."
    moved = {
        f"{prefix}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}text_projection": state["text_projection.weight"].T.contiguous(),
        f"{prefix}logit_scale": torch.tensor(4.6),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    for half in ("weight", "bias"):
        moved[f"{prefix}ln_final.{half}"] = state[f"final_layer_norm.{half}"]
        for i in range(num_layers):
            source, target = f"encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            joint = [state[f"{source}.self_attn.{part}_proj.{half}"] for part in "qkv"]
            moved[f"{target}.attn.in_proj_{half}"] = torch.cat(joint)
            moved |= {f"{target}.{new}.{half}": state[f"{source}.{old}.{half}"] for old, new in names.items()}
    return moved


def _moved(name: str, places: dict[str, str], inner: dict[str, str]) -> str:
    """A name with its block, and what is in it, under their other names."""
    block = max((old for old in places if name.startswith(f"{old}.")), key=len, default=None)
    if block is None:
        return name
    rest = name.removeprefix(f"{block}.")
    part = max((old for old in inner if rest.startswith(f"{old}.")), key=len, default=None)
    if part is not None:
        rest = f"{inner[part]}.{rest.removeprefix(f'{part}.')}"
    return f"{places[block]}.{rest}"
