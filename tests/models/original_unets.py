"""Stable Diffusion's U-Nets in the layout of their authors, written down from published configurations.

Nothing here reads the project's code: these tables judge the names under which a LoRA leaves it. Each function returns
all tensors of a checkpoint's network.
"""

from meta_layers import Table, conv, linear, matrix, norm

EMBEDDING = 1280


def sdxl() -> Table:
    """sd_xl_base.yaml: 320 channels, multiples 1, 2, 4, depths 0, 2, 10."""
    table = linear("label_emb.0.0", EMBEDDING, 2816) | linear("label_emb.0.2", EMBEDDING, EMBEDDING)
    return table | _unet((320, 640, 1280), (0, 2, 10), middle=10, context=2048, is_linear=True)


def sd1() -> Table:
    """v1-inference.yaml: 320 channels, multiples 1, 2, 4, 4, an attention on each level but the last."""
    return _unet((320, 640, 1280, 1280), (1, 1, 1, 0), middle=1, context=768, is_linear=False)


def sd2() -> Table:
    """v2-inference-v.yaml: as version 1, with OpenCLIP's width and linear projections."""
    return _unet((320, 640, 1280, 1280), (1, 1, 1, 0), middle=1, context=1024, is_linear=True)


def _unet(widths: tuple[int, ...], depths: tuple[int, ...], *, middle: int, context: int, is_linear: bool) -> Table:
    """Two resnets per level on the way down and three on the way up, numbered in the order of their calls.

    depths: transformer blocks of each attention, by level; middle: of the one between. is_linear: whether an
    attention's projections are linear layers or convolutions.
    """

    def attention(place: str, width: int, depth: int) -> Table:
        return _attention(place, width, depth, context, is_linear=is_linear) if depth else {}

    table = linear("time_embed.0", EMBEDDING, widths[0]) | linear("time_embed.2", EMBEDDING, EMBEDDING)
    table |= conv("input_blocks.0.0", widths[0], 4, 3, 3)
    number, width, skips = 1, widths[0], [widths[0]]
    for level, (wider, depth) in enumerate(zip(widths, depths, strict=True)):
        for _ in range(2):
            table |= _resnet(f"input_blocks.{number}.0", width, wider)
            table |= attention(f"input_blocks.{number}.1", wider, depth)
            number, width = number + 1, wider
            skips.append(width)
        if level < len(widths) - 1:
            table |= conv(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    table |= _resnet("middle_block.0", width, width) | attention("middle_block.1", width, middle)
    table |= _resnet("middle_block.2", width, width)
    number = 0
    for level, depth in reversed(list(enumerate(depths))):
        for i in range(3):
            place = f"output_blocks.{number}"
            table |= _resnet(f"{place}.0", width + skips.pop(), widths[level])
            width = widths[level]
            table |= attention(f"{place}.1", width, depth)
            if level and i == 2:
                table |= conv(f"{place}.{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1
    return table | norm("out.0", width) | conv("out.2", 4, width, 3, 3)


def _resnet(place: str, before: int, after: int) -> Table:
    table = norm(f"{place}.in_layers.0", before) | conv(f"{place}.in_layers.2", after, before, 3, 3)
    table |= linear(f"{place}.emb_layers.1", after, EMBEDDING)
    table |= norm(f"{place}.out_layers.0", after) | conv(f"{place}.out_layers.3", after, after, 3, 3)
    return table | (conv(f"{place}.skip_connection", after, before, 1, 1) if before != after else {})


def _attention(place: str, width: int, depth: int, context: int, *, is_linear: bool) -> Table:
    table = norm(f"{place}.norm", width)
    for name in ("proj_in", "proj_out"):
        table |= conv(f"{place}.{name}", width, width, *([] if is_linear else [1, 1]))
    for i in range(depth):
        block = f"{place}.transformer_blocks.{i}"
        for name, source in (("attn1", width), ("attn2", context)):
            table |= matrix(f"{block}.{name}.to_q", width, width)
            table |= matrix(f"{block}.{name}.to_k", width, source) | matrix(f"{block}.{name}.to_v", width, source)
            table |= linear(f"{block}.{name}.to_out.0", width, width)
        table |= linear(f"{block}.ff.net.0.proj", 8 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
        for name in ("norm1", "norm2", "norm3"):
            table |= norm(f"{block}.{name}", width)
    return table
