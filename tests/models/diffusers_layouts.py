"""The networks whose published layout is the one of diffusers, written down from published configurations.

Nothing here reads the project's code: these tables judge the names under which a LoRA leaves it. Each function returns
all tensors of a checkpoint's network.
"""

from meta_layers import Table, conv, linear, matrix, tensor

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
JOINT_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def qwen_image() -> Table:
    """Qwen-Image: 60 blocks of width 3072."""
    width, text = 3072, 3584
    table = linear("img_in", width, 64) | linear("txt_in", width, text) | tensor("txt_norm.weight", text)
    for name, size in (("linear_1", 256), ("linear_2", width)):
        table |= linear(f"time_text_embed.timestep_embedder.{name}", width, size)
    for i in range(60):
        block = f"transformer_blocks.{i}"
        table |= _joint_attention(block, width)
        for stream in ("img", "txt"):
            table |= linear(f"{block}.{stream}_mod.1", 6 * width, width)
            table |= linear(f"{block}.{stream}_mlp.net.0.proj", 4 * width, width)
            table |= linear(f"{block}.{stream}_mlp.net.2", width, 4 * width)
    return table | linear("norm_out.linear", 2 * width, width) | linear("proj_out", 64, width)


def longcat_image() -> Table:
    """LongCat-Image: 10 joint and 20 single blocks of width 3072."""
    width, text = 3072, 3584
    table = linear("x_embedder", width, 64) | linear("context_embedder", width, text)
    for name, size in (("linear_1", 256), ("linear_2", width)):
        table |= linear(f"time_embed.timestep_embedder.{name}", width, size)
    for i in range(10):
        block = f"transformer_blocks.{i}"
        table |= _joint_attention(block, width)
        for stream in ("", "_context"):
            table |= linear(f"{block}.norm1{stream}.linear", 6 * width, width)
            table |= linear(f"{block}.ff{stream}.net.0.proj", 4 * width, width)
            table |= linear(f"{block}.ff{stream}.net.2", width, 4 * width)
    for i in range(20):
        block = f"single_transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v"):
            table |= linear(f"{block}.attn.{name}", width, width)
        table |= tensor(f"{block}.attn.norm_q.weight", 128) | tensor(f"{block}.attn.norm_k.weight", 128)
        table |= linear(f"{block}.norm.linear", 3 * width, width)
        table |= linear(f"{block}.proj_mlp", 4 * width, width) | linear(f"{block}.proj_out", width, 5 * width)
    return table | linear("norm_out.linear", 2 * width, width) | linear("proj_out", 64, width)


def ernie_image() -> Table:
    """ERNIE-Image: 36 blocks of width 4096, one modulation for all of them."""
    width, hidden = 4096, 12288
    table = conv("x_embedder.proj", width, 128, 1, 1) | matrix("text_proj", width, 3072)
    table |= linear("time_embedding.linear_1", width, width) | linear("time_embedding.linear_2", width, width)
    table |= linear("adaLN_modulation.1", 6 * width, width)
    for i in range(36):
        block = f"layers.{i}"
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            table |= matrix(f"{block}.self_attention.{name}", width, width)
        for name in ("norm_q", "norm_k"):
            table |= tensor(f"{block}.self_attention.{name}.weight", 128)
        table |= matrix(f"{block}.mlp.gate_proj", hidden, width) | matrix(f"{block}.mlp.up_proj", hidden, width)
        table |= matrix(f"{block}.mlp.linear_fc2", width, hidden)
        table |= tensor(f"{block}.adaLN_sa_ln.weight", width) | tensor(f"{block}.adaLN_mlp_ln.weight", width)
    return table | linear("final_norm.linear", 2 * width, width) | linear("final_linear", 128, width)


def pixart_sigma() -> Table:
    """PixArt-Sigma: 28 blocks of width 1152, eps beside a variance."""
    width = 1152
    table = conv("pos_embed.proj", width, 4, 2, 2) | tensor("scale_shift_table", 2, width)
    for name, size in (("linear_1", 256), ("linear_2", width)):
        table |= linear(f"adaln_single.emb.timestep_embedder.{name}", width, size)
    table |= linear("adaln_single.linear", 6 * width, width)
    table |= linear("caption_projection.linear_1", width, 4096) | linear("caption_projection.linear_2", width, width)
    for i in range(28):
        block = f"transformer_blocks.{i}"
        table |= tensor(f"{block}.scale_shift_table", 6, width)
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                table |= linear(f"{block}.{attention}.{name}", width, width)
        table |= linear(f"{block}.ff.net.0.proj", 4 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
    return table | linear("proj_out", 2 * 2 * 8, width)


def _joint_attention(block: str, width: int) -> Table:
    table: Table = {}
    for name in JOINT:
        table |= linear(f"{block}.attn.{name}", width, width)
    for name in JOINT_NORMS:
        table |= tensor(f"{block}.attn.{name}.weight", 128)
    return table
