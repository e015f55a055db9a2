"""Packing of FLUX.1 and Qwen-Image, judged by the stock pipelines' own functions."""

import pytest
import torch
from diffusers import FluxPipeline, QwenImagePipeline

from dpdmd.models.packed import pack, unpack


@pytest.mark.parametrize("stock", [FluxPipeline, QwenImagePipeline])
def test_packing_is_the_stock_pipelines_and_unpacking_undoes_it(stock, randn):
    latents = randn(0, 2, 3, 4, 6)
    assert torch.equal(pack(latents), stock._pack_latents(latents, 2, 3, 4, 6))
    assert torch.equal(unpack(pack(latents), (3, 4, 6)), latents)
