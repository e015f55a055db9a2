import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.testing import assert_close

from dpdmd.models.folding import FoldedJointAttention

NUM_COPIES = 5


def transformer(qk_norm):
    """A tiny SD3 transformer; with norms also the second self-attention of SD3.5."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm=qk_norm,
        dual_attention_layers=(0,) if qk_norm else (),
    )
    # Norm weights start at 1; other values show whether query and key norms are taken from the right places.
    for name, parameter in model.named_parameters():
        if "norm_" in name and parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model.eval()


def run(model, prompt_embeds, randn, num_copies=None):
    """Output, and gradients of a fixed projection of it by the prompt and by every parameter."""
    if num_copies is not None:
        model.set_attn_processor(FoldedJointAttention(num_copies))
    prompt_embeds = prompt_embeds.clone().requires_grad_()
    out = model(
        hidden_states=randn(1, 2, 4, 8, 8),
        encoder_hidden_states=prompt_embeds,
        pooled_projections=randn(2, 2, 10),
        timestep=torch.tensor([900.0, 300.0]),
        return_dict=False,
    )[0]
    model.zero_grad()
    (out * randn(3, *out.shape)).sum().backward()
    return out.detach(), prompt_embeds.grad, {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture
def prompt_embeds(randn):
    """Three distinct tokens, then one that each row repeats NUM_COPIES times; not zero, to be stricter than SD3's."""
    tokens = randn(0, 2, 4, 12)
    return torch.cat([tokens[:, :3], tokens[:, 3:].expand(2, NUM_COPIES, 12)], dim=1)


@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
def test_one_folded_token_equals_its_copies_under_stock_attention(qk_norm, prompt_embeds, randn):
    model = transformer(qk_norm)
    out, by_prompt, by_parameter = run(model, prompt_embeds, randn)
    folded, by_folded_prompt, by_parameter_folded = run(model, prompt_embeds[:, :4], randn, NUM_COPIES)
    assert_close(folded, out, atol=1e-5, rtol=1e-5)
    # The folded token represents its copies: it receives the sum of their gradients.
    assert_close(by_folded_prompt[:, :3], by_prompt[:, :3], atol=1e-5, rtol=1e-4)
    assert_close(by_folded_prompt[:, 3], by_prompt[:, 3:].sum(dim=1), atol=1e-5, rtol=1e-4)
    for name, gradient in by_parameter.items():
        assert_close(by_parameter_folded[name], gradient, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
def test_one_copy_is_stock_attention(qk_norm, prompt_embeds, randn):
    model = transformer(qk_norm)
    stock = run(model, prompt_embeds, randn)[0]
    assert_close(run(model, prompt_embeds, randn, 1)[0], stock, atol=1e-6, rtol=1e-6)


def test_the_number_of_copies_matters(prompt_embeds, randn):
    model = transformer("rms_norm")
    few, many = (run(model, prompt_embeds[:, :4], randn, n)[0] for n in (1, NUM_COPIES))
    assert (few - many).abs().max() > 1e-3  # 100 times the tolerance of the equality above


def test_a_mask_is_refused(prompt_embeds, randn):
    attention = transformer(None).transformer_blocks[0].attn
    with pytest.raises(ValueError, match="does not support an attention_mask"):
        FoldedJointAttention(2)(attention, randn(0, 1, 2, 16), randn(1, 1, 2, 16), attention_mask=torch.ones(1, 4))
