"""Load a vision transformer whose weights have timm's names into transformers' BlipVisionModel."""

from torch import Tensor
from transformers import BlipVisionConfig, BlipVisionModel

HEAD_WIDTH = 64
NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "blocks": "encoder.layers",
    "attn": "self_attn",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "norm": "post_layernorm",
}
LAST_NORM = "post_layernorm."


def vision_model(tensors: dict[str, Tensor], *, with_norm: bool = True) -> BlipVisionModel:
    """Build the model with these weights and infer its configuration from their shapes; heads are 64 channels wide.

    with_norm: whether the weights include the last norm.
    Raises KeyError or RuntimeError if weights are missing or do not fit.
    """
    renamed = {_name(name): tensor for name, tensor in tensors.items()}
    model = BlipVisionModel(_config(renamed))
    if not with_norm:
        own = model.state_dict().items()
        renamed |= {name: tensor for name, tensor in own if name.startswith(LAST_NORM)}
    model.load_state_dict(renamed)
    return model


def _name(name: str) -> str:
    if name.startswith("patch_embed.proj."):
        return name.replace("patch_embed.proj", "embeddings.patch_embedding")
    name = ".".join(NAMES.get(part, part) for part in name.split("."))
    return name.replace(".self_attn.proj.", ".self_attn.projection.")


def _config(tensors: dict[str, Tensor]) -> BlipVisionConfig:
    width, _, _, patch_size = tensors["embeddings.patch_embedding.weight"].shape
    patches = tensors["embeddings.position_embedding"].shape[1] - 1
    prefix = "encoder.layers."
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors[f"{prefix}0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round(patches**0.5) * patch_size,
        patch_size=patch_size,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
