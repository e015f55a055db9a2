import pytest
import torch
from torch.testing import assert_close

from dpdmd.method.guidance import Guidance, guided

TIMES = (1.0, 0.9, 0.75, 0.5, 0.0)


def test_guidance_extrapolates_from_uncond_through_cond(stepwise_network, prompts, randn):
    network, x_t, t = stepwise_network(TIMES), randn(0, 4, 2, 4, 4), torch.tensor([1.0, 0.6, 0.3, 0.05])
    cond, uncond = prompts([1.0, 2.0, -1.0, 3.0]), prompts([0.5, -0.5, 0.0, 1.0])
    result = guided(network, x_t, t, cond, uncond, Guidance(3.5))
    c, u = network(x_t, t, cond), network(x_t, t, uncond)
    assert_close(result.x0, u.x0 + 3.5 * (c.x0 - u.x0), atol=1e-5, rtol=1e-5)
    assert_close(result.eps, u.eps + 3.5 * (c.eps - u.eps), atol=1e-5, rtol=1e-5)
    assert_close(result.velocity, u.velocity + 3.5 * (c.velocity - u.velocity), atol=1e-5, rtol=1e-5)


def test_both_halves_are_one_call_with_the_empty_prompts_second(stepwise_network, recorder, prompts, randn):
    spy, x_t, t = recorder(stepwise_network(TIMES)), randn(0, 2, 1, 3, 3), torch.tensor([0.5, 0.8])
    guided(spy, x_t, t, prompts([1.0, 2.0]), prompts([0.0, 0.5]), Guidance(2.0))
    ((x, times, cond),) = spy.calls
    assert torch.equal(x, torch.cat([x_t, x_t])) and torch.equal(times, torch.cat([t, t]))
    assert cond.tensors["mean"].tolist() == [1.0, 2.0, 0.0, 0.5]


def test_a_scale_of_one_costs_one_conditional_forward(stepwise_network, recorder, prompts, randn):
    network, x_t, t = stepwise_network(TIMES), randn(0, 2, 1, 3, 3), torch.tensor([0.5, 0.8])
    cond, spy = prompts([1.0, 2.0]), recorder(network)
    result = guided(spy, x_t, t, cond, prompts([0.0, 0.0]), Guidance(1.0))
    assert torch.equal(result.x0, network(x_t, t, cond).x0)
    assert [len(x) for x, _, _ in spy.calls] == [2]


@pytest.mark.parametrize("scale", [0.5, 0.0, -1.0, float("nan")])
def test_scales_below_one_are_refused(scale):
    with pytest.raises(ValueError, match=r"guidance_scale must be >= 1 \(1 = off\)"):
        Guidance(scale)
