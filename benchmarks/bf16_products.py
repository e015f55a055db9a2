"""Products of bf16 tensors on processors without instructions for them: in fp32, rounded to bf16.

torch computes such products there many times more slowly than in fp32. A GPU multiplies bf16 numbers, adds in fp32 and
rounds the sum, which is what this does too. One layer's operands are in fp32 at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Operation -> how many of its results are in the dtype of its arguments; the others are statistics in fp32.
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS = {"mm": 1, "addmm": 1, "bmm": 1, "baddbmm": 1, "convolution": 1, "convolution_backward": 3}
PRODUCTS |= {ATTENTION: 1, f"{ATTENTION}_backward": 3}


def are_slow() -> bool:
    """Whether this machine computes on a CPU that multiplies no bf16 numbers by itself."""
    return not torch.cuda.is_available() and not torch.cpu._is_avx512_supported()


@contextmanager
def products_in_fp32() -> Iterator[None]:
    """Within the block products of bf16 tensors on the CPU are computed in fp32, also in backward passes."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, number in PRODUCTS.items():
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, partial(_product, kernel, number), "CPU", with_keyset=True)
        yield


def _product(kernel: Any, number: int, keys: Any, *args: Any, **options: Any) -> Any:
    if not any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args):
        return kernel.call_boxed(keys, *args, **options)
    wide = {name: _widened(value) for name, value in options.items()}
    results = kernel.call_boxed(keys, *map(_widened, args), **wide)
    if isinstance(results, Tensor):
        return results.bfloat16()
    return tuple(r.bfloat16() if i < number and isinstance(r, Tensor) else r for i, r in enumerate(results))


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
