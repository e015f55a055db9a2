from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from dpdmd.method.discriminator import Discriminator, Head
from dpdmd.method.grids import uniform_grid
from dpdmd.method.objective import Objective
from dpdmd.method.terms.adversarial import Adversarial

STUDENT_GRID = uniform_grid(4, shift=3)


def adversarial(**settings):
    return Adversarial(**{"tau_low": 0.02, "tau_high": 0.98} | settings)


@pytest.fixture
def discriminator(networks):
    """A discriminator on the fake score's prediction, with a head whose output is not zero."""
    head = Head([2])
    torch.nn.init.normal_(head.branches[0][-1].weight, generator=torch.Generator().manual_seed(3))
    return Discriminator(lambda x, t, cond: [networks[2](x, t, cond).eps.flatten(2).transpose(1, 2)], head)


@pytest.fixture
def make_step(networks, discriminator, micro_batch, student_step):
    return lambda **options: replace(student_step(*networks, **micro_batch, **options), discriminator=discriminator)


@pytest.mark.parametrize("detach_first", [False, True])
def test_it_trains_the_student_after_the_cut_and_nobody_else(detach_first, networks, discriminator, make_step):
    student, teacher, fake = networks
    adversarial()(make_step(detach_first=detach_first)).loss.backward()
    assert student.steps_with_gradient() == [not detach_first, True, True, True]
    assert teacher.denoise.steps_with_gradient() == fake.denoise.steps_with_gradient() == [False] * 4
    for parameter in [p for net in (teacher.denoise, fake.denoise, discriminator.head) for p in net.parameters()]:
        assert parameter.grad is None


def test_loss_and_gradient_are_those_of_the_graph_written_out(networks, discriminator, make_step):
    step = make_step()
    x = step.rollout.x0
    x.retain_grad()
    result = adversarial()(step)
    result.loss.backward()
    ((x_tau, tau, cond),) = networks[2].calls
    assert torch.equal(cond.tensors["mean"], step.cond.tensors["mean"])
    mine = x.detach().requires_grad_()
    tau_ = tau[:, None, None, None]
    noise = (x_tau - (1 - tau_) * x.detach()) / tau_
    logits = discriminator((1 - tau_) * mine + tau_ * noise, tau, cond)
    expected = torch.log1p(torch.exp(-logits)).mean()
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # fp32 sums in another order: gradients are about 1e-3.
    assert_close(x.grad, mine.grad, atol=5e-6, rtol=1e-4)
    assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_step_down_its_gradient_looks_more_real(discriminator, make_step):
    step = make_step()
    x = step.rollout.x0
    x.retain_grad()
    loss = adversarial()(step).loss
    loss.backward()
    moved = replace(step, rollout=replace(step.rollout, x0=(x - 0.1 * x.grad / x.grad.norm()).detach()))
    assert adversarial()(moved).loss < loss


def test_tau_is_stratified_in_its_range_and_draws_are_its_own(networks, make_step):
    for seed in (5, 5, 6):
        adversarial(tau_low=0.2, tau_high=0.6)(make_step(seed=seed))
    (x_a, tau_a, _), (x_b, tau_b, _), (x_c, tau_c, _) = networks[2].calls
    assert ((tau_a - 0.2) / 0.4 * 4).floor().sort().values.tolist() == [0, 1, 2, 3]
    assert torch.equal(x_a, x_b) and torch.equal(tau_a, tau_b)
    assert not torch.equal(x_a, x_c) and not torch.equal(tau_a, tau_c)
    assert not torch.equal(tau_a, 0.2 + 0.4 * torch.rand(4, generator=make_step(seed=5).rng("dmd")))


def test_a_linear_discriminator_pushes_every_value_by_its_slope(make_step):
    # D(x_tau) = 3 mean x_tau: the gradient is -sigmoid(-D) (1 - tau) 3 / numel of a sample, over the batch.
    logits = []

    def head(features):
        logits.append(3.0 * features[0].mean(dim=(1, 2)))
        return logits[-1]

    linear = Discriminator(lambda x, t, cond: [x.flatten(2)], head)
    step = replace(make_step(), discriminator=linear)
    x = step.rollout.x0
    x.retain_grad()
    adversarial(tau_low=0.5, tau_high=0.5 + 1e-6)(step).loss.backward()
    pull = torch.sigmoid(-logits[0].detach())[:, None, None, None]
    assert_close(x.grad, (-0.5 * 3 / x.numel() * pull).expand_as(x), atol=1e-6, rtol=1e-4)


def test_a_term_in_every_nth_update_counts_n_times():
    first, second = adversarial(weight=2.0), adversarial(weight=4.0, every=3)
    objective = Objective((first, second))
    both, alone = [(2.0, first), (12.0, second)], [(2.0, first)]
    assert [objective.due(step) for step in range(5)] == [both, alone, alone, both, alone]
    assert sum(weight for step in range(6) for weight, term in objective.due(step) if term == second) == 6 * 4.0
    still = Objective((adversarial(weight=0.0),))
    assert still.due(0) == [(0.0, still.terms[0])]  # a weight of zero is watched all the same
