"""A network in the layout that ComfyUI reads, for the families whose networks it does not read as diffusers saves them.

It is that of their authors; LongCat-Image, which its authors publish in diffusers' own, is FLUX.1 there. Each table
leads from a module there to those of diffusers that it is made of: one, or several whose weights lie one below the
other. {} is the number of a block. A name that ends in a tensor stands for this tensor alone, every other one for
weight and bias.
"""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

COMFYUI_FILE = "comfyui_student.safetensors"
Table = dict[str, tuple[str, ...]]


def _renamed(prefixes: tuple[str, str], names: dict[str, str]) -> Table:
    """A table of single modules after a prefix there and here."""
    return {f"{prefixes[0]}{theirs}": (f"{prefixes[1]}{ours}",) for theirs, ours in names.items()}


def _attention(block: str, here: str, *, joint: bool) -> Table:
    """The queries, keys and values of one stream of a block as one matrix, and the lengths of the first two."""
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if joint else ("to_q", "to_k", "to_v")
    norms = ("norm_added_q", "norm_added_k") if joint else ("norm_q", "norm_k")
    table: Table = {f"{block}qkv": tuple(f"{here}{name}" for name in names)}
    ends = ("norm.query_norm.scale", "norm.key_norm.scale")
    return table | {f"{block}{end}": (f"{here}{norm}.weight",) for end, norm in zip(ends, norms, strict=True)}


# What FLUX.1's blocks and FLUX.2's have in common.
DOUBLE = {
    **_attention("double_blocks.{}.img_attn.", "transformer_blocks.{}.attn.", joint=False),
    **_attention("double_blocks.{}.txt_attn.", "transformer_blocks.{}.attn.", joint=True),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "single_blocks.{}.norm.query_norm.scale": ("single_transformer_blocks.{}.attn.norm_q.weight",),
    "single_blocks.{}.norm.key_norm.scale": ("single_transformer_blocks.{}.attn.norm_k.weight",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
}
SINGLE = tuple(f"single_transformer_blocks.{{}}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
FLUX = {
    **DOUBLE,
    **_renamed(("double_blocks.{}.img_mlp.", "transformer_blocks.{}.ff.net."), {"0": "0.proj", "2": "2"}),
    **_renamed(("double_blocks.{}.txt_mlp.", "transformer_blocks.{}.ff_context.net."), {"0": "0.proj", "2": "2"}),
    "single_blocks.{}.linear1": SINGLE,
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
}
GUIDE = "distilled_guidance_layer."
CHROMA = {
    **FLUX,
    **_renamed((GUIDE, GUIDE), {"in_proj": "in_proj", "out_proj": "out_proj"}),
    **_renamed((f"{GUIDE}layers.{{}}.", f"{GUIDE}layers.{{}}."), {"in_layer": "linear_1", "out_layer": "linear_2"}),
    f"{GUIDE}norms.{{}}.scale": (f"{GUIDE}norms.{{}}.weight",),
}
FINAL = "final_layer.adaLN_modulation.1"
LONGCAT = {
    **{name.replace("_norm.scale", "_norm.weight"): parts for name, parts in FLUX.items()},
    **_renamed(("time_in.", "time_embed.timestep_embedder."), {"in_layer": "linear_1", "out_layer": "linear_2"}),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    FINAL: ("norm_out.linear",),
}
KLEIN = {
    **DOUBLE,
    **_renamed(("double_blocks.{}.img_mlp.", "transformer_blocks.{}.ff."), {"0": "linear_in", "2": "linear_out"}),
    **_renamed(
        ("double_blocks.{}.txt_mlp.", "transformer_blocks.{}.ff_context."), {"0": "linear_in", "2": "linear_out"}
    ),
    "single_blocks.{}.linear1": ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.attn.to_out",),
    **_renamed(
        ("time_in.", "time_guidance_embed.timestep_embedder."), {"in_layer": "linear_1", "out_layer": "linear_2"}
    ),
    **{
        f"{name}.lin": (f"{name}.linear",)
        for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    },
    FINAL: ("norm_out.linear",),
}


def _krea2_block(theirs: str, ours: str) -> Table:
    names = {"attn.wq": "attn.to_q", "attn.wk": "attn.to_k", "attn.wv": "attn.to_v", "attn.wo": "attn.to_out.0"}
    names |= {"attn.gate": "attn.to_gate", "mlp.gate": "ff.gate", "mlp.up": "ff.up", "mlp.down": "ff.down"}
    names |= {"attn.qknorm.qnorm.scale": "attn.norm_q.weight", "attn.qknorm.knorm.scale": "attn.norm_k.weight"}
    names |= {"prenorm.scale": "norm1.weight", "postnorm.scale": "norm2.weight"}
    return _renamed((f"{theirs}.{{}}.", f"{ours}.{{}}."), names)


KREA2 = {
    **_krea2_block("blocks", "transformer_blocks"),
    **_krea2_block("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"),
    **_krea2_block("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"),
    "blocks.{}.mod.lin": ("transformer_blocks.{}.scale_shift_table",),
    "txtfusion.projector": ("text_fusion.projector",),
    "first": ("img_in",),
    "tmlp.0": ("time_embed.linear_1",),
    "tmlp.2": ("time_embed.linear_2",),
    "tproj.1": ("time_mod_proj",),
    "txtmlp.0.scale": ("txt_in.norm.weight",),
    "txtmlp.1": ("txt_in.linear_1",),
    "txtmlp.3": ("txt_in.linear_2",),
    "last.linear": ("final_layer.linear",),
    "last.norm.scale": ("final_layer.norm.weight",),
    "last.modulation.lin": ("final_layer.scale_shift_table",),
}


def _lumina2_block(name: str, first_norm: str) -> Table:
    block = f"{name}.{{}}."
    names = {"attention.out": "attn.to_out.0", "attention.q_norm": "attn.norm_q", "attention.k_norm": "attn.norm_k"}
    names |= {f"feed_forward.w{i}": f"feed_forward.linear_{i}" for i in (1, 2, 3)}
    names |= {"attention_norm1": first_norm, "attention_norm2": "norm2", "adaLN_modulation.1": "norm1.linear"}
    names |= {"ffn_norm1": "ffn_norm1", "ffn_norm2": "ffn_norm2"}
    heads = tuple(f"{block}attn.{part}" for part in ("to_q", "to_k", "to_v"))
    return {f"{block}attention.qkv": heads, **_renamed((block, block), names)}


TIME = "time_caption_embed."
LUMINA2 = {
    **_lumina2_block("layers", "norm1.norm"),
    **_lumina2_block("noise_refiner", "norm1.norm"),
    **_lumina2_block("context_refiner", "norm1"),
    **_renamed(("cap_embedder.", f"{TIME}caption_embedder."), {"0": "0", "1": "1"}),
    **_renamed(("t_embedder.mlp.", f"{TIME}timestep_embedder."), {"0": "linear_1", "2": "linear_2"}),
    "x_embedder": ("x_embedder",),
    "final_layer.linear": ("norm_out.linear_2",),
    FINAL: ("norm_out.linear_1",),
}


def _halves_swapped(tensor: Tensor) -> Tensor:
    """Shift above scale, which diffusers keeps the other way round."""
    return torch.cat(tensor.chunk(2)[::-1])


TABLES = {
    "ChromaPipeline": CHROMA,
    "Flux2KleinPipeline": KLEIN,
    "Krea2Pipeline": KREA2,
    "LongCatImagePipeline": LONGCAT,
    "Lumina2Pipeline": LUMINA2,
}
CHANGED: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "Flux2KleinPipeline": {FINAL: _halves_swapped},
    "Krea2Pipeline": {"blocks.{}.mod.lin": torch.flatten},
    "LongCatImagePipeline": {FINAL: _halves_swapped},
}


def in_comfyui_layout(pipeline: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network, by diffusers' names, as ComfyUI reads them.

    pipeline: name of the stock pipeline's class, one of TABLES. Only what lies in one matrix there is copied. Raises
    ValueError for a tensor without a place there.
    """
    left, named, changed = dict(tensors), {}, CHANGED.get(pipeline, {})
    for theirs, ours in TABLES[pipeline].items():
        change = changed.get(theirs, lambda tensor: tensor)
        for end in ("", ".weight", ".bias"):
            for i in count():
                names = [f"{name.format(i)}{end}" for name in ours]
                if names[0] not in left:
                    break
                parts = [left.pop(name) for name in names]
                named[f"{theirs.format(i)}{end}"] = change(torch.cat(parts) if len(parts) > 1 else parts[0])
    if left:
        raise ValueError(f"{min(left)} of a {pipeline} has no place in the layout that ComfyUI reads")
    return named
