"""Transformers in the layouts of their authors, written down from published configurations.

Nothing here reads the project's code: these tables judge the names under which a LoRA leaves it. Each function returns
all tensors of a checkpoint's network. U-Nets are in `original_unets`, what is published in diffusers' own layout in
`diffusers_layouts`.
"""

from meta_layers import Table, conv, linear, matrix, tensor


def sd35_medium() -> Table:
    """SD3.5-medium: 24 joint blocks of width 1536, 13 with a second attention."""
    width, depth, dual = 1536, 24, 13
    table = tensor("pos_embed", 1, 384 * 384, width) | conv("x_embedder.proj", width, 16, 2, 2)
    table |= linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    table |= linear("y_embedder.mlp.0", width, 2048) | linear("y_embedder.mlp.2", width, width)
    table |= linear("context_embedder", width, 4096)
    for i in range(depth):
        for part in ("x_block", "context_block"):
            block, is_last = f"joint_blocks.{i}.{part}", i == depth - 1 and part == "context_block"
            attentions = ["attn", "attn2"] if part == "x_block" and i < dual else ["attn"]
            for attention in attentions:
                table |= linear(f"{block}.{attention}.qkv", 3 * width, width)
                table |= tensor(f"{block}.{attention}.ln_q.weight", 64)
                table |= tensor(f"{block}.{attention}.ln_k.weight", 64)
                if not is_last:
                    table |= linear(f"{block}.{attention}.proj", width, width)
            chunks = 2 if is_last else 9 if len(attentions) == 2 else 6
            table |= linear(f"{block}.adaLN_modulation.1", chunks * width, width)
            if not is_last:
                table |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    table |= linear("final_layer.linear", 2 * 2 * 16, width)
    return table | linear("final_layer.adaLN_modulation.1", 2 * width, width)


def flux_dev() -> Table:
    """FLUX.1-dev: 19 double and 38 single blocks of width 3072, each with its modulation."""
    width = 3072
    table = _flux_blocks() | linear("final_layer.adaLN_modulation.1", 2 * width, width)
    for name, size in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        table |= linear(f"{name}.in_layer", width, size) | linear(f"{name}.out_layer", width, width)
    for i in range(19):
        for part in ("img", "txt"):
            table |= linear(f"double_blocks.{i}.{part}_mod.lin", 6 * width, width)
    for i in range(38):
        table |= linear(f"single_blocks.{i}.modulation.lin", 3 * width, width)
    return table


def chroma() -> Table:
    """Chroma1: FLUX.1's blocks, whose modulations one network of five layers gives."""
    width, guide = 3072, "distilled_guidance_layer"
    table = _flux_blocks() | linear(f"{guide}.in_proj", 5120, 64) | linear(f"{guide}.out_proj", width, 5120)
    for i in range(5):
        table |= linear(f"{guide}.layers.{i}.in_layer", 5120, 5120)
        table |= linear(f"{guide}.layers.{i}.out_layer", 5120, 5120) | tensor(f"{guide}.norms.{i}.scale", 5120)
    return table


def _flux_blocks() -> Table:
    """What FLUX.1 and Chroma1 have in common."""
    width = 3072
    table = linear("img_in", width, 64) | linear("txt_in", width, 4096) | linear("final_layer.linear", 64, width)
    for i in range(19):
        for part in ("img", "txt"):
            block = f"double_blocks.{i}.{part}"
            table |= linear(f"{block}_attn.qkv", 3 * width, width) | linear(f"{block}_attn.proj", width, width)
            table |= _flux_norms(f"{block}_attn")
            table |= linear(f"{block}_mlp.0", 4 * width, width) | linear(f"{block}_mlp.2", width, 4 * width)
    for i in range(38):
        block = f"single_blocks.{i}"
        table |= linear(f"{block}.linear1", 7 * width, width) | linear(f"{block}.linear2", width, 5 * width)
        table |= _flux_norms(block)
    return table


def _flux_norms(block: str) -> Table:
    return tensor(f"{block}.norm.query_norm.scale", 128) | tensor(f"{block}.norm.key_norm.scale", 128)


def flux2_klein() -> Table:
    """FLUX.2-klein-4B: 5 double and 20 single blocks of width 3072, without a bias, three modulations for all."""
    width, hidden = 3072, 9216  # of a gated layer, whose first matrix has two halves
    table = matrix("img_in", width, 128) | matrix("txt_in", width, 7680) | matrix("final_layer.linear", 128, width)
    table |= matrix("time_in.in_layer", width, 256) | matrix("time_in.out_layer", width, width)
    table |= matrix("final_layer.adaLN_modulation.1", 2 * width, width)
    table |= matrix("single_stream_modulation.lin", 3 * width, width)
    for part in ("img", "txt"):
        table |= matrix(f"double_stream_modulation_{part}.lin", 6 * width, width)
        for i in range(5):
            block = f"double_blocks.{i}.{part}"
            table |= matrix(f"{block}_attn.qkv", 3 * width, width) | matrix(f"{block}_attn.proj", width, width)
            table |= _flux_norms(f"{block}_attn")
            table |= matrix(f"{block}_mlp.0", 2 * hidden, width) | matrix(f"{block}_mlp.2", width, hidden)
    for i in range(20):
        block = f"single_blocks.{i}"
        table |= matrix(f"{block}.linear1", 3 * width + 2 * hidden, width) | _flux_norms(block)
        table |= matrix(f"{block}.linear2", width, width + hidden)
    return table


def krea2() -> Table:
    """Krea-2-Raw: 28 blocks of width 6144 with 48 heads and 12 of keys, four of width 2560 for the prompt."""
    width, text = 6144, 2560

    def block(name: str, width: int, keys: int, hidden: int) -> Table:
        table = tensor(f"{name}.prenorm.scale", width) | tensor(f"{name}.postnorm.scale", width)
        for part, rows in (("wq", width), ("wk", keys), ("wv", keys), ("wo", width), ("gate", width)):
            table |= matrix(f"{name}.attn.{part}", rows, width)
        for part in ("qnorm", "knorm"):
            table |= tensor(f"{name}.attn.qknorm.{part}.scale", 128)
        for part, rows, columns in (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)):
            table |= matrix(f"{name}.mlp.{part}", rows, columns)
        return table

    table = linear("first", width, 64) | linear("tproj.1", 6 * width, width)
    table |= linear("tmlp.0", width, 256) | linear("tmlp.2", width, width)
    table |= tensor("txtmlp.0.scale", text) | linear("txtmlp.1", width, text) | linear("txtmlp.3", width, width)
    table |= matrix("txtfusion.projector", 1, 12)
    for kind in ("layerwise", "refiner"):
        for i in range(2):
            table |= block(f"txtfusion.{kind}_blocks.{i}", text, text, 6912)
    for i in range(28):
        table |= block(f"blocks.{i}", width, 1536, 16384) | tensor(f"blocks.{i}.mod.lin", 6 * width)
    table |= tensor("last.norm.scale", width) | tensor("last.modulation.lin", 2, width)
    return table | linear("last.linear", 64, width)


def z_image() -> Table:
    """Z-Image: 30 layers and twice two refiners of width 3840, 30 heads of 128."""
    width, embedding = 3840, 256
    table = _next_dit(width, depth=30, keys=width, hidden=10240, head=128, caption=2560, embedding=embedding)
    for name in ("layers", "noise_refiner"):
        for i in range(30 if name == "layers" else 2):
            table |= linear(f"{name}.{i}.adaLN_modulation.0", 4 * width, embedding)
    return table | tensor("x_pad_token", 1, width) | tensor("cap_pad_token", 1, width)


def lumina2() -> Table:
    """Lumina-Image 2.0: 26 layers and twice two refiners of width 2304, 24 heads of 96 and 8 of keys."""
    width, embedding = 2304, 1024
    table = _next_dit(width, depth=26, keys=768, hidden=9216, head=96, caption=2304, embedding=embedding)
    for name in ("layers", "noise_refiner"):
        for i in range(26 if name == "layers" else 2):
            table |= linear(f"{name}.{i}.adaLN_modulation.1", 4 * width, embedding)
    return table | tensor("norm_final.weight", width)  # which nothing uses


def _next_dit(width: int, *, depth: int, keys: int, hidden: int, head: int, caption: int, embedding: int) -> Table:
    """What Z-Image and Lumina-Image 2.0 have in common. The context refiner knows nothing of the time."""
    table = linear("x_embedder", width, 64) | linear("final_layer.linear", 64, width)
    table |= linear("final_layer.adaLN_modulation.1", width, embedding)
    table |= tensor("cap_embedder.0.weight", caption) | linear("cap_embedder.1", width, caption)
    table |= linear("t_embedder.mlp.0", 1024, 256) | linear("t_embedder.mlp.2", embedding, 1024)
    for name, number in (("layers", depth), ("noise_refiner", 2), ("context_refiner", 2)):
        for i in range(number):
            block = f"{name}.{i}"
            table |= matrix(f"{block}.attention.qkv", width + 2 * keys, width)
            table |= matrix(f"{block}.attention.out", width, width)
            table |= tensor(f"{block}.attention.q_norm.weight", head) | tensor(f"{block}.attention.k_norm.weight", head)
            table |= matrix(f"{block}.feed_forward.w1", hidden, width)
            table |= matrix(f"{block}.feed_forward.w3", hidden, width)
            table |= matrix(f"{block}.feed_forward.w2", width, hidden)
            for part in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                table |= tensor(f"{block}.{part}.weight", width)
    return table


def sana() -> Table:
    """Sana 1600M: 20 blocks of width 2240, mixing layers of 2 x 5600."""
    width, mixed, caption = 2240, 5600, 2304
    table = tensor("pos_embed", 1) | tensor("y_embedder.y_embedding", caption)
    table |= tensor("attention_y_norm.weight", width) | conv("x_embedder.proj", width, 32, 1, 1)
    table |= linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    table |= linear("t_block.1", 6 * width, width)
    table |= linear("y_embedder.y_proj.fc1", width, caption) | linear("y_embedder.y_proj.fc2", width, width)
    for i in range(20):
        block = f"blocks.{i}"
        table |= tensor(f"{block}.scale_shift_table", 6, width)
        table |= matrix(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        table |= linear(f"{block}.cross_attn.q_linear", width, width)
        table |= linear(f"{block}.cross_attn.kv_linear", 2 * width, width)
        table |= linear(f"{block}.cross_attn.proj", width, width)
        table |= conv(f"{block}.mlp.inverted_conv.conv", 2 * mixed, width, 1, 1)
        table |= conv(f"{block}.mlp.depth_conv.conv", 2 * mixed, 1, 3, 3)
        table |= tensor(f"{block}.mlp.point_conv.conv.weight", width, mixed, 1, 1)
    return table | tensor("final_layer.scale_shift_table", 2, width) | linear("final_layer.linear", 32, width)
