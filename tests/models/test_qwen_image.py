"""What is special about Qwen-Image: guidance that keeps the conditional velocity's length in every token."""

import pytest
import tiny_qwen_image
import torch
from torch.testing import assert_close

from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import Prediction, from_velocity, per_sample
from dpdmd.models.load import load_adapter
from dpdmd.models.packed import pack
from dpdmd.models.qwen_image import length_preserving_rule


@pytest.fixture
def case(randn):
    """x_t, t, conditional and unconditional predictions of two samples, and a scale."""
    x_t, t = randn(0, 2, 3, 4, 6), torch.tensor([0.9, 0.3])
    cond, uncond = (from_velocity(x_t, randn(seed, 2, 3, 4, 6), t) for seed in (1, 2))
    return x_t, t, cond, uncond, 4.0


def test_the_guided_velocity_has_the_conditional_ones_length_in_every_token(case):
    x_t, t, cond, uncond, scale = case
    guided = length_preserving_rule(x_t, t, cond, uncond, scale).velocity
    assert_close(pack(guided).norm(dim=-1), pack(cond.velocity).norm(dim=-1), atol=1e-5, rtol=1e-5)


def test_the_guided_velocity_points_where_linear_guidance_does(case):
    guided, linear = (pack(rule(*case).velocity) for rule in (length_preserving_rule, linear_rule))
    cosine = torch.cosine_similarity(guided, linear, dim=-1)
    assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert (guided - linear).abs().max() > 0.1


def test_the_guided_prediction_lies_on_the_path(case):
    x_t, t, *_ = case
    guided = length_preserving_rule(*case)
    assert_close((1 - per_sample(t, x_t)) * guided.x0 + per_sample(t, x_t) * guided.eps, x_t, atol=1e-5, rtol=1e-5)


def test_scale_one_gives_the_conditional_prediction_back(case):
    x_t, t, cond, uncond, _ = case
    guided = length_preserving_rule(x_t, t, cond, uncond, 1.0)
    assert_close(guided.x0, cond.x0, atol=1e-5, rtol=1e-5)
    assert_close(guided.eps, cond.eps, atol=1e-5, rtol=1e-5)


def test_a_token_without_velocity_stays_without(case):
    x_t, t, *_, scale = case
    still = Prediction(x_t, x_t)
    guided = length_preserving_rule(x_t, t, still, still, scale)
    assert_close(guided.x0, x_t, atol=0, rtol=0)


def test_prompts_are_masked_to_their_own_length_and_read_up_to_512_tokens(tmp_path):
    tiny_qwen_image.save(tmp_path)
    adapter = load_adapter(str(tmp_path))
    short, long, endless = (
        adapter.encode([prompt]) for prompt in ("a red circle", "a red circle on white", 600 * "red ")
    )
    both = adapter.encode(["a red circle", "a red circle on white"])
    lengths = [cond.tensors["prompt_mask"].shape[1] for cond in (short, long)]
    assert lengths[0] < lengths[1] and both.tensors["prompt_mask"].sum(dim=1).tolist() == lengths
    assert not both.tensors["prompt_embeds"][0, lengths[0] :].any()
    assert endless.tensors["prompt_embeds"].shape[:2] == endless.tensors["prompt_mask"].shape == (1, 512)
    assert adapter.latent_shape() == (4, 128, 128)
