"""Quantise a frozen network to 8 or 4 bits per weight to train LoRA adapters on it (`model.dtype` int8, fp8 and nf4).

Only the linear layers of the blocks are quantised, which hold most of the weights; all other weights are in bf16.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from dpdmd.models.fp8 import Fp8Linear

# model.dtype -> the package it requires, if any; the extra of dpdmd with the name of the dtype installs it.
PACKAGES: dict[str, str | None] = {"int8": "torchao", "fp8": None, "nf4": "bitsandbytes"}
NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256  # weights per scale; scales per scale of scales (double quantisation)
MIDDLE = "mid_block"  # the middle block of a U-Net, which belongs to none of its block lists


def missing_package(dtype: str) -> str | None:
    """The error message if the package required by `model.dtype` is missing, else None."""
    package = PACKAGES.get(dtype)
    if package is None or find_spec(package) is not None:
        return None
    return f'model.dtype "{dtype}" needs {package}, which is not installed: pip install "dpdmd[{dtype}]"'


def quantise(network: nn.Module, dtype: str, block_lists: tuple[str, ...], device: torch.device | str = "cpu") -> None:
    """Freeze a network and quantise it in place, layer by layer on `device`; all other weights become bf16.

    dtype: "int8" (torchao, one scale per row), "fp8" (`Fp8Linear`) or "nf4" (bitsandbytes, one scale per block of 64
    weights, with the scales quantised as well; arXiv 2305.14314).
    block_lists: names of the network's attributes that hold its blocks.
    """
    nn.Module.to(network.requires_grad_(False), torch.bfloat16)  # the override in diffusers would warn
    for name, layer in list(block_layers(network, block_lists)):
        layer = {"int8": _to_int8, "fp8": _to_fp8, "nf4": _to_nf4}[dtype](layer, device)
        # Autocast does not apply to quantised layers: without the cast they would compute in the dtype of their input.
        layer.register_forward_pre_hook(_in_bf16)
        network.set_submodule(name, layer)
    # peft reads this to choose the class of the adapter.
    network.is_loaded_in_4bit = dtype == "nf4"  # pyright: ignore[reportArgumentType]  # torch declares only modules


def block_layers(network: nn.Module, block_lists: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Yield (name, layer) of every linear layer that `quantise` quantises."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.partition(".")[0] in (*block_lists, MIDDLE):
            yield name, module


def weight_bytes(shape: tuple[int, int], dtype: str) -> int:
    """Bytes of the weight of a quantised linear layer, including its scales.

    shape: (out_features, in_features) of the layer.
    """
    rows, number = shape[0], shape[0] * shape[1]
    if dtype == "int8":
        return number + rows * (4 + 1)  # per row: a 4-byte scale and a 1-byte zero point (always zero)
    if dtype == "fp8":
        return number + rows * 4
    scales = -(-number // NF4_BLOCK)
    tables = 4 * (16 + 256 + 1)  # fp32 code books of weights and scales, and the mean of the scales
    return -(-number // 2) + scales + 4 * -(-scales // NF4_SCALES_BLOCK) + tables


def _to_int8(layer: nn.Linear, device: torch.device | str) -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # set_inductor_config=True would change torch.compile's settings for the whole process.
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False), device=device)
    return layer


def _to_fp8(layer: nn.Linear, device: torch.device | str) -> nn.Linear:
    return Fp8Linear(layer.to(device))


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
    # The weight is quantised when it is moved to a device.
    quantised.weight = bitsandbytes.nn.Params4bit(layer.weight.data, quant_type="nf4", module=quantised)
    quantised.bias = layer.bias
    # On some CPUs a call without gradients would repack the weights into a form that does not support gradients.
    quantised.support_avx512bf16_for_cpu = False
    return quantised.to(device)


def _in_bf16(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.bfloat16) for x in inputs)
