"""The discriminator's head, and listening to blocks of a network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dpdmd.method.discriminator import (
    Discriminator,
    Head,
    block_outputs,
    default_blocks,
    discriminator_loss,
    generator_loss,
)


@pytest.fixture
def head():
    """A head whose output is not zero, unlike that of a new one."""
    head = Head([6, 3])
    for branch in head.branches:
        nn.init.normal_(branch[-1].weight, generator=torch.Generator().manual_seed(0))
    return head


def test_a_new_head_is_undecided_and_its_seed_decides_the_rest(randn):
    features = [randn(0, 4, 5, 6), randn(1, 4, 9, 3)]
    assert Head([6, 3])(features).tolist() == [0.0] * 4
    weights = [Head([6, 3], seed=seed).branches[0][1].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    state = torch.random.get_rng_state()
    Head([6])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_logit_is_the_mean_over_places_and_blocks_of_each_sample_alone(head, randn):
    a, b = randn(0, 4, 5, 6), randn(1, 4, 9, 3)
    logits = head([a, b])
    assert logits.shape == (4,) and logits.std() > 0
    assert_close(head([a.repeat(1, 3, 1), b[:, torch.randperm(9)]]), logits)
    assert_close(torch.cat([head([a[i : i + 1], b[i : i + 1]]) for i in range(4)]), logits)
    ones = [branch(f).mean(dim=(1, 2)) for branch, f in zip(head.branches, (a, b), strict=True)]
    assert_close((ones[0] + ones[1]) / 2, logits)


def test_features_of_any_size_and_dtype_count_alike(head, randn):
    a, b = randn(0, 4, 5, 6), randn(1, 4, 9, 3)
    assert_close(head([1000 * a + 50, b]), head([a, b]), atol=1e-3, rtol=1e-3)
    low = head([a.bfloat16(), b.bfloat16()])
    assert low.dtype == torch.float32
    assert_close(low, head([a, b]), atol=0.05, rtol=0.05)


def test_a_head_is_light_for_the_largest_networks():
    assert sum(p.numel() for p in Head([3072, 3072, 3072]).parameters()) < 600_000


def test_default_blocks_are_spread_over_the_depth():
    expected = {24: (6, 12, 18), 4: (1, 2, 3), 3: (0, 1, 2), 2: (0, 1), 1: (0,), 57: (14, 28, 42)}
    assert {number: default_blocks(number) for number in expected} == expected


def test_it_learns_to_distinguish_two_shifted_gaussians():
    rng = torch.Generator().manual_seed(0)
    # Vectors of 8 tokens with 4 numbers; means .5 apart in one number of each: Bayes is right Phi(.25 sqrt 8) = 76 %.
    shift = torch.tensor([0.5, 0.0, 0.0, 0.0])

    def draw(number):
        real, fake = (torch.randn(number, 8, 4, generator=rng) for _ in range(2))
        return real + shift, fake

    discriminator = Discriminator(lambda x, t, cond: [x], Head([4]))
    optimizer = torch.optim.AdamW(discriminator.head.parameters(), lr=1e-2)
    for _ in range(150):
        real, fake = (discriminator(x, None, None) for x in draw(64))
        optimizer.zero_grad()
        discriminator_loss(real, fake).backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = (discriminator(x, None, None) for x in draw(4000))
    accuracy = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
    assert 0.72 < accuracy < 0.78


class Chain(nn.Module):
    """Three blocks, of which the last counts its calls."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.calls = 0

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        self.calls += 1
        return x


@pytest.mark.parametrize(("stop", "calls"), [(True, 0), (False, 1)])
def test_listening_gives_each_blocks_output_and_may_leave_early(stop, calls, randn):
    chain, x = Chain(), randn(0, 3, 2)
    first, second = chain.blocks[0](x), chain.blocks[1](chain.blocks[0](x))
    outputs = block_outputs(lambda: chain(x), [chain.blocks[1], chain.blocks[0]], stop=stop)
    assert torch.equal(outputs[0], second) and torch.equal(outputs[1], first)
    assert chain.calls == calls
    chain(x)
    assert chain.calls == calls + 1  # the hooks are removed


def test_an_error_of_the_network_is_not_swallowed_and_nobody_listens_on():
    chain = Chain()
    with pytest.raises(RuntimeError):
        block_outputs(lambda: chain(torch.zeros(1, 5)), [chain.blocks[0]], stop=True)
    assert not chain.blocks[0]._forward_hooks


def test_non_saturating_losses_are_cross_entropies_in_probabilities(randn):
    real, fake = 2 * randn(0, 50), 2 * randn(1, 50)
    p_real, p_fake = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (real, fake))
    expected = -np.log(p_real).mean() - np.log(1 - p_fake).mean()
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-5)
    assert generator_loss(fake).item() == pytest.approx(-np.log(p_fake).mean(), rel=1e-5)
    assert discriminator_loss(real * 0, fake * 0).item() == pytest.approx(2 * np.log(2))


def test_adversarial_gradients_pull_the_logits_apart_and_the_students_up(randn):
    real, fake = (randn(i, 6).requires_grad_() for i in (0, 1))
    discriminator_loss(real, fake).backward()
    assert_close(real.grad, -torch.sigmoid(-real.detach()) / 6)
    assert_close(fake.grad, torch.sigmoid(fake.detach()) / 6)
    mine = fake.detach().requires_grad_()
    generator_loss(mine).backward()
    assert_close(mine.grad, -torch.sigmoid(-mine.detach()) / 6)
