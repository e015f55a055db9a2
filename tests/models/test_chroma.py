"""What is special about Chroma1: a mask that is added to attention, and blocks that are recomputed with theirs."""

import copy

import pytest
import torch
from torch.testing import assert_close

from dpdmd.method.denoiser import Condition
from dpdmd.models.load import load_adapter

PROMPTS = ["a red circle", "the small blue cross on a white background"]


@pytest.fixture(scope="module")
def adapter(tiny_folder):
    return load_adapter(tiny_folder("chroma"))


@pytest.fixture
def inputs(adapter, randn):
    """x_t and t of one sample."""
    return randn(0, 1, *adapter.latent_shape(16, 24)), torch.tensor([0.6])


def test_tokens_of_a_prompt_and_one_of_its_padding_are_marked(adapter):
    bias = adapter.encode(PROMPTS).tensors["prompt_bias"]
    assert bias.sum(dim=1).tolist() == [len(prompt.split()) + 3 for prompt in PROMPTS]  # start, end, padding
    assert bias.shape == (2, 512)


def test_what_is_not_marked_is_seen_all_the_same(adapter, inputs):
    """The reason why padding is not dropped, as it is for other families."""
    cond, network = adapter.encode(PROMPTS[:1]), adapter.load_network()
    length = int(cond.tensors["prompt_bias"].sum())
    short = Condition({name: tensor[:, :length] for name, tensor in cond.tensors.items()})
    with torch.no_grad():
        whole, dropped = (adapter.predict(network, *inputs, cond) for cond in (cond, short))
    assert (whole.x0 - dropped.x0).abs().max() > 1e-3


def test_recomputed_blocks_see_the_mask_of_their_own_call(adapter, inputs):
    """Two calls with other prompts, of a network and of its copy, come before both backward passes."""
    network = adapter.load_network().train()

    def gradients(networks):
        for each in networks:
            each.zero_grad(set_to_none=True)
        conds = [adapter.encode([prompt]) for prompt in PROMPTS]
        losses = [adapter.predict(networks[0], *inputs, cond).x0.square().mean() for cond in conds]
        losses += [adapter.predict(networks[1], *inputs, conds[0]).x0.square().mean()]
        sum(losses).backward()
        return [p.grad.clone() for each in networks for p in each.parameters() if p.grad is not None]

    plain = gradients([network, copy.deepcopy(network)])
    network.enable_gradient_checkpointing()
    recomputed = gradients([network, copy.deepcopy(network)])
    for a, b in zip(plain, recomputed, strict=True):
        assert_close(a, b, atol=1e-6, rtol=1e-5)
