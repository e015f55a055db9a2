"""A frozen linear layer whose weight is stored in 8-bit floating-point numbers (`model.dtype = "fp8"`)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORMAT = torch.float8_e4m3fn  # 4 bits of exponent, 3 of mantissa
LARGEST = torch.finfo(FORMAT).max  # 448


class Fp8Linear(nn.Linear):
    """x W^T + b with W = 2^k codes, one exponent k for each row of W; `weight` is W in bf16, made when it is asked for.

    2^k is the smallest power of two above max|w| / 448 of the own weights w of the row. Codes have 4 significant bits,
    so that W is exact in bf16, and |W - w| <= max(|w| / 16, 2^k / 1024), half a step of the format. To peft it is an
    ordinary linear layer.
    """

    def __init__(self, layer: nn.Linear):
        """layer: whose weight and bias are taken, the bias as it is."""
        nn.Module.__init__(self)  # nn.Linear would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        exponents = torch.frexp(weight.abs().amax(dim=1, keepdim=True) / LARGEST).exponent
        scale = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
        self.codes = nn.Parameter((weight / scale).to(FORMAT), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)  # (out_features, 1), fp32
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """W (out_features, in_features) in bf16, a new tensor."""
        return decoded(self.codes, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) in bf16 -> (..., out_features) in bf16."""
        return _Product.apply(x, self.codes, self.scale, self.bias)


def decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight that codes (rows, columns) and powers of two (rows, 1) stand for, in bf16, and no larger tensor."""
    return codes.to(torch.bfloat16).mul_(scale.bfloat16())  # by one in fp32 a CPU would multiply in fp32


class _Product(torch.autograd.Function):
    """x W^T + b. W is made for it, and again in the backward pass: no graph keeps it in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, decoded(codes, scale), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient @ decoded(*ctx.saved_tensors), None, None, None
