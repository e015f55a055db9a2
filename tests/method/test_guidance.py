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


def test_guidance_acts_inside_its_interval_only(stepwise_network, recorder, prompts, randn):
    # The ends belong to the interval; B = W = 4, so a scale along the wrong axis would go unnoticed by shapes.
    network, x_t, t = stepwise_network(TIMES), randn(0, 4, 2, 4, 4), torch.tensor([0.95, 0.9, 0.3, 0.1])
    cond, uncond = prompts([1.0, 2.0, -1.0, 3.0]), prompts([0.5, -0.5, 0.0, 1.0])
    spy = recorder(network)
    result = guided(spy, x_t, t, cond, uncond, Guidance(2.0, (0.3, 0.9)))
    c, u = network(x_t, t, cond), network(x_t, t, uncond)
    for view in ("x0", "eps"):
        got, with_prompt, without = (getattr(prediction, view) for prediction in (result, c, u))
        assert_close(got[[0, 3]], with_prompt[[0, 3]], atol=0, rtol=0)
        assert_close(got[[1, 2]], (2 * with_prompt - without)[[1, 2]], atol=1e-5, rtol=1e-5)
    assert [len(x) for x, _, _ in spy.calls] == [6]  # four conditional and two unconditional rows


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(5.0, (0.0, 0.4))], ids=["scale 1", "outside"])
def test_unguided_samples_cost_one_conditional_forward(guidance, stepwise_network, recorder, prompts, randn):
    network, x_t, t = stepwise_network(TIMES), randn(0, 2, 1, 3, 3), torch.tensor([0.5, 0.8])
    cond, spy = prompts([1.0, 2.0]), recorder(network)
    result = guided(spy, x_t, t, cond, prompts([0.0, 0.0]), guidance)
    assert torch.equal(result.x0, network(x_t, t, cond).x0)
    assert [len(x) for x, _, _ in spy.calls] == [2]


@pytest.mark.parametrize("scale", [0.5, 0.0, -1.0, float("nan")])
def test_scales_below_one_are_refused(scale):
    with pytest.raises(ValueError, match=r"guidance_scale must be >= 1 \(1 = off\)"):
        Guidance(scale)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.9, 0.3), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 1.0)])
def test_impossible_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="guidance_interval must be"):
        Guidance(2.0, interval)
