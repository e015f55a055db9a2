"""Names of a LoRA for Lumina-Image 2.0 in the original layout, the only ones that ComfyUI knows; diffusers reads them.

diffusers, in a block            original layout
attn.to_q, to_k, to_v            attention.qkv, one matrix
attn.to_out.0                    attention.out
feed_forward.linear_1, _2, _3    feed_forward.w1, w2, w3
norm1.linear                     adaLN_modulation.1
"""

from typing import Any

import torch
from torch import Tensor

LISTS = ("noise_refiner", "context_refiner", "layers")
PLACES = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": ("attn.to_out.0",),
    "feed_forward.w1": ("feed_forward.linear_1",),
    "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
    "adaLN_modulation.1": ("norm1.linear",),  # not in the context refiner
}
WIDTHS = (2304, 768, 768)  # of queries, keys and values, which diffusers' converter takes for granted


def is_readable(network: Any) -> bool:
    """Whether diffusers' converter fits the network: that of the public model."""
    attention = network.layers[0].attn
    return tuple(layer.out_features for layer in (attention.to_q, attention.to_k, attention.to_v)) == WIDTHS


def lora_names(layers: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """A LoRA of the diffusers transformer, lora_B @ lora_A, in the original layout.

    Queries, keys and values become one update of three times the rank: their lora_A below each other, their lora_B as
    blocks on a diagonal. diffusers' converter asks for every linear layer of every block, so that those which the LoRA
    leaves alone get an update of rank one that is zero.

    layers: "MODULE.lora_A.weight" (rank, in) and "MODULE.lora_B.weight" (out, rank). network: on any device; only its
    shapes are read. Raises ValueError for a module outside of the blocks, which the converter does not know.
    """
    dtype, left, named = next(iter(layers.values())).dtype, set(layers), {}

    def halves(block: str, part: str, linear: Any) -> tuple[Tensor, Tensor]:
        names = [f"{block}.{part}.lora_{half}.weight" for half in "AB"]
        if names[0] not in layers:
            return torch.zeros(0, linear.in_features, dtype=dtype), torch.zeros(linear.out_features, 0, dtype=dtype)
        left.difference_update(names)
        return layers[names[0]], layers[names[1]]

    for block, module in ((f"{name}.{i}", m) for name in LISTS for i, m in enumerate(getattr(network, name))):
        inside = dict(module.named_modules())
        for place, parts in PLACES.items():
            if parts[0] not in inside:
                continue
            downs, ups = zip(*(halves(block, part, inside[part]) for part in parts), strict=True)
            down, up = torch.cat(downs), torch.block_diag(*ups)
            if not len(down):
                down, up = down.new_zeros(1, down.shape[1]), up.new_zeros(len(up), 1)
            named |= {
                f"diffusion_model.{block}.{place}.lora_{half}.weight": t
                for half, t in zip("AB", (down, up), strict=True)
            }
    if left:
        module = min(left).rpartition(".lora_")[0]
        raise ValueError(
            f"a LoRA of {module} cannot be exported: stock diffusers reads none in the original layout of Lumina 2; "
            "export it without --lora, which merges it into the network"
        )
    return named
