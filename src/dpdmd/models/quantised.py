"""A frozen network with 8 or 4 bits per weight, for adapters to be trained on: `model.dtype` "int8" and "nf4".

The linear layers of the blocks are quantised, most of any network; all other weights are in bf16.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

# model.dtype -> the package that it needs, which the extra of the same name installs.
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256  # weights per scale, scales per scale of scales
MIDDLE = "mid_block"  # of a U-Net, which stands in no list


def missing_package(dtype: str) -> str | None:
    """What to install for `model.dtype`, None where all is there."""
    package = PACKAGES.get(dtype)
    if package is None or find_spec(package) is not None:
        return None
    return f'model.dtype "{dtype}" needs {package}, which is not installed: pip install "dpdmd[{dtype}]"'


def quantise(network: nn.Module, dtype: str, block_lists: tuple[str, ...], device: torch.device | str = "cpu") -> None:
    """Quantise a frozen network in place, layer by layer on `device`; what is not quantised becomes bf16.

    int8: torchao, a scale per row. nf4: bitsandbytes, blocks of 64 whose scales are quantised as well (arXiv
    2305.14314). block_lists: the network's attributes that hold its blocks.
    """
    nn.Module.to(network.requires_grad_(False), torch.bfloat16)  # diffusers' own would warn
    for name, layer in list(block_layers(network, block_lists)):
        layer = _to_int8(layer, device) if dtype == "int8" else _to_nf4(layer, device)
        # Autocast does not reach into such layers: they would compute and return what they are given.
        layer.register_forward_pre_hook(_in_bf16)
        network.set_submodule(name, layer)
    network.is_loaded_in_4bit = dtype == "nf4"  # how peft knows which adapter to make


def block_layers(network: nn.Module, block_lists: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """(name, linear layer) of all that is quantised."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.partition(".")[0] in (*block_lists, MIDDLE):
            yield name, module


def weight_bytes(shape: tuple[int, int], dtype: str) -> int:
    """What the weight of a quantised layer takes, its scales included."""
    rows, number = shape[0], shape[0] * shape[1]
    if dtype == "int8":
        return number + rows * (4 + 1)  # scale, and a zero point that is zero
    scales = -(-number // NF4_BLOCK)
    tables = 4 * (16 + 256 + 1)  # values of a weight, values of a scale, the scales' mean
    return -(-number // 2) + scales + 4 * -(-scales // NF4_SCALES_BLOCK) + tables


def _to_int8(layer: nn.Linear, device: torch.device | str) -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # Without that, torch.compile's settings would be changed for everybody.
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False), device=device)
    return layer


def _to_nf4(layer: nn.Linear, device: torch.device | str) -> nn.Linear:
    import bitsandbytes

    with torch.device("meta"):
        quantised = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
    # Moving it to a device quantises the weight.
    quantised.weight = bitsandbytes.nn.Params4bit(layer.weight.data, quant_type="nf4", module=quantised)
    quantised.bias = layer.bias
    # On some processors a call without gradient would repack the weights into a form that gives none.
    quantised.support_avx512bf16_for_cpu = False
    return quantised.to(device)


def _in_bf16(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.bfloat16) for x in inputs)
