"""Names and shapes of the networks in the layouts of their authors, written down from published configurations.

Nothing here reads the project's code: these tables judge the names under which a LoRA leaves it. Each function returns
{name of a weight: shape}: all of a network, of SDXL's its linear layers outside and inside its attentions.
"""

import torch

Table = dict[str, tuple[int, ...]]


def sdxl() -> Table:
    """Linear layers of sd_xl_base.yaml: 320 channels, multiples 1, 2, 4, two resnets per level, depths 0, 2, 10."""
    channels, depths, num_resnets, context, embedding = (320, 640, 1280), (0, 2, 10), 2, 2048, 1280
    table: Table = {
        "time_embed.0": (embedding, 320),
        "time_embed.2": (embedding, embedding),
        "label_emb.0.0": (embedding, 2816),
        "label_emb.0.2": (embedding, embedding),
    }
    number = 1  # input_blocks.0 is the first convolution
    for level, width in enumerate(channels):
        for _ in range(num_resnets):
            table |= _resnet(f"input_blocks.{number}.0", width, embedding)
            table |= _attention(f"input_blocks.{number}.1", width, depths[level], context)
            number += 1
        number += level < 2  # the convolution that halves the size
    table |= _resnet("middle_block.0", 1280, embedding) | _attention("middle_block.1", 1280, 10, context)
    table |= _resnet("middle_block.2", 1280, embedding)
    number = 0
    for level, width in reversed(list(enumerate(channels))):
        for _ in range(num_resnets + 1):
            table |= _resnet(f"output_blocks.{number}.0", width, embedding)
            table |= _attention(f"output_blocks.{number}.1", width, depths[level], context)
            number += 1
    return table


def _resnet(place: str, width: int, embedding: int) -> Table:
    return {f"{place}.emb_layers.1": (width, embedding)}


def _attention(place: str, width: int, depth: int, context: int) -> Table:
    if not depth:
        return {}
    table: Table = {f"{place}.proj_in": (width, width), f"{place}.proj_out": (width, width)}
    for i in range(depth):
        block = f"{place}.transformer_blocks.{i}"
        for name, source in (("attn1", width), ("attn2", context)):
            table[f"{block}.{name}.to_q"] = (width, width)
            table |= {f"{block}.{name}.to_{key}": (width, source) for key in "kv"}
            table[f"{block}.{name}.to_out.0"] = (width, width)
        table[f"{block}.ff.net.0.proj"] = (8 * width, width)
        table[f"{block}.ff.net.2"] = (width, 4 * width)
    return table


def _linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.empty(rows, columns, device="meta"),
        f"{name}.bias": torch.empty(rows, device="meta"),
    }


def _norm(name: str, size: int) -> dict[str, torch.Tensor]:
    return {name: torch.empty(size, device="meta")}


def sd35_medium() -> dict[str, torch.Tensor]:
    """SD3.5-medium's checkpoint on the meta device: 24 joint blocks of width 1536, 13 with a second attention."""
    width, depth, dual = 1536, 24, 13
    table = {"pos_embed": torch.empty(1, 384 * 384, width, device="meta")}
    table |= {"x_embedder.proj.weight": torch.empty(width, 16, 2, 2, device="meta")}
    table |= {"x_embedder.proj.bias": torch.empty(width, device="meta")}
    table |= _linear("t_embedder.mlp.0", width, 256) | _linear("t_embedder.mlp.2", width, width)
    table |= _linear("y_embedder.mlp.0", width, 2048) | _linear("y_embedder.mlp.2", width, width)
    table |= _linear("context_embedder", width, 4096)
    for i in range(depth):
        for part in ("x_block", "context_block"):
            block, is_last = f"joint_blocks.{i}.{part}", i == depth - 1 and part == "context_block"
            attentions = ["attn", "attn2"] if part == "x_block" and i < dual else ["attn"]
            for attention in attentions:
                table |= _linear(f"{block}.{attention}.qkv", 3 * width, width)
                table |= _norm(f"{block}.{attention}.ln_q.weight", 64) | _norm(f"{block}.{attention}.ln_k.weight", 64)
                if not is_last:
                    table |= _linear(f"{block}.{attention}.proj", width, width)
            chunks = 2 if is_last else 9 if len(attentions) == 2 else 6
            table |= _linear(f"{block}.adaLN_modulation.1", chunks * width, width)
            if not is_last:
                table |= _linear(f"{block}.mlp.fc1", 4 * width, width) | _linear(f"{block}.mlp.fc2", width, 4 * width)
    table |= _linear("final_layer.linear", 2 * 2 * 16, width) | _linear(
        "final_layer.adaLN_modulation.1", 2 * width, width
    )
    return table


def flux_dev() -> dict[str, torch.Tensor]:
    """FLUX.1-dev's checkpoint on the meta device: 19 double and 38 single blocks of width 3072."""
    width = 3072
    table = _linear("img_in", width, 64) | _linear("txt_in", width, 4096)
    for name, size in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        table |= _linear(f"{name}.in_layer", width, size) | _linear(f"{name}.out_layer", width, width)
    for i in range(19):
        for part in ("img", "txt"):
            block = f"double_blocks.{i}.{part}"
            table |= _linear(f"{block}_mod.lin", 6 * width, width) | _linear(f"{block}_attn.qkv", 3 * width, width)
            table |= _norm(f"{block}_attn.norm.query_norm.scale", 128) | _norm(f"{block}_attn.norm.key_norm.scale", 128)
            table |= _linear(f"{block}_attn.proj", width, width)
            table |= _linear(f"{block}_mlp.0", 4 * width, width) | _linear(f"{block}_mlp.2", width, 4 * width)
    for i in range(38):
        block = f"single_blocks.{i}"
        table |= _linear(f"{block}.linear1", 7 * width, width) | _linear(f"{block}.linear2", width, 5 * width)
        table |= _linear(f"{block}.modulation.lin", 3 * width, width)
        table |= _norm(f"{block}.norm.query_norm.scale", 128) | _norm(f"{block}.norm.key_norm.scale", 128)
    return (
        table | _linear("final_layer.linear", 64, width) | _linear("final_layer.adaLN_modulation.1", 2 * width, width)
    )


def z_image() -> dict[str, torch.Tensor]:
    """Z-Image's checkpoint on the meta device: 30 layers and twice two refiners of width 3840, 30 heads of 128."""
    width, hidden, caption, embedding = 3840, 10240, 2560, 256

    def matrix(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.empty(rows, columns, device="meta")}

    table = _linear("x_embedder", width, 64) | _linear("final_layer.linear", 64, width)
    table |= _linear("final_layer.adaLN_modulation.1", width, embedding)
    table |= _norm("cap_embedder.0.weight", caption) | _linear("cap_embedder.1", width, caption)
    table |= _linear("t_embedder.mlp.0", 1024, 256) | _linear("t_embedder.mlp.2", embedding, 1024)
    table |= {f"{name}_pad_token": torch.empty(1, width, device="meta") for name in ("x", "cap")}
    for name, number in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2)):
        for i in range(number):
            block = f"{name}.{i}"
            table |= matrix(f"{block}.attention.qkv", 3 * width, width) | matrix(f"{block}.attention.out", width, width)
            table |= _norm(f"{block}.attention.q_norm.weight", 128) | _norm(f"{block}.attention.k_norm.weight", 128)
            table |= matrix(f"{block}.feed_forward.w1", hidden, width) | matrix(
                f"{block}.feed_forward.w3", hidden, width
            )
            table |= matrix(f"{block}.feed_forward.w2", width, hidden)
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                table |= _norm(f"{block}.{norm}.weight", width)
            if name != "context_refiner":  # which knows nothing of the time
                table |= _linear(f"{block}.adaLN_modulation.0", 4 * width, embedding)
    return table


def qwen_image() -> dict[str, torch.Tensor]:
    """Qwen-Image's checkpoint on the meta device, whose layout is the one of diffusers: 60 blocks of width 3072."""
    width, text = 3072, 3584
    table = _linear("img_in", width, 64) | _linear("txt_in", width, text) | _norm("txt_norm.weight", text)
    for name, size in (("linear_1", 256), ("linear_2", width)):
        table |= _linear(f"time_text_embed.timestep_embedder.{name}", width, size)
    for i in range(60):
        block = f"transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            table |= _linear(f"{block}.attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            table |= _norm(f"{block}.attn.{name}.weight", 128)
        for stream in ("img", "txt"):
            table |= _linear(f"{block}.{stream}_mod.1", 6 * width, width)
            table |= _linear(f"{block}.{stream}_mlp.net.0.proj", 4 * width, width)
            table |= _linear(f"{block}.{stream}_mlp.net.2", width, 4 * width)
    return table | _linear("norm_out.linear", 2 * width, width) | _linear("proj_out", 64, width)


def sana() -> dict[str, torch.Tensor]:
    """Sana 1600M's checkpoint on the meta device: 20 blocks of width 2240, mixing layers of 2 x 5600."""
    width, mixed, caption = 2240, 5600, 2304

    def conv(name: str, *shape: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": torch.empty(shape, device="meta"),
            f"{name}.bias": torch.empty(shape[0], device="meta"),
        }

    table = _norm("pos_embed", 1) | _norm("y_embedder.y_embedding", caption) | _norm("attention_y_norm.weight", width)
    table |= conv("x_embedder.proj", width, 32, 1, 1)
    table |= _linear("t_embedder.mlp.0", width, 256) | _linear("t_embedder.mlp.2", width, width)
    table |= _linear("t_block.1", 6 * width, width)
    table |= _linear("y_embedder.y_proj.fc1", width, caption) | _linear("y_embedder.y_proj.fc2", width, width)
    for i in range(20):
        block = f"blocks.{i}"
        table |= {f"{block}.scale_shift_table": torch.empty(6, width, device="meta")}
        table |= {f"{block}.attn.qkv.weight": torch.empty(3 * width, width, device="meta")}
        table |= _linear(f"{block}.attn.proj", width, width)
        table |= _linear(f"{block}.cross_attn.q_linear", width, width)
        table |= _linear(f"{block}.cross_attn.kv_linear", 2 * width, width)
        table |= _linear(f"{block}.cross_attn.proj", width, width)
        table |= conv(f"{block}.mlp.inverted_conv.conv", 2 * mixed, width, 1, 1)
        table |= conv(f"{block}.mlp.depth_conv.conv", 2 * mixed, 1, 3, 3)
        table |= {f"{block}.mlp.point_conv.conv.weight": torch.empty(width, mixed, 1, 1, device="meta")}
    table |= {"final_layer.scale_shift_table": torch.empty(2, width, device="meta")}
    return table | _linear("final_layer.linear", 32, width)
