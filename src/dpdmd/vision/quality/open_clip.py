"""Load weights that have open_clip's names into transformers' CLIPModel."""

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

# The number of heads in both towers of ViT-H-14, which cannot be inferred from a state dict.
NUM_HEADS = 16
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
AROUND = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
TOWERS = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}
# Buffers in a state dict that follow from the network's configuration.
BUFFERS = ("attn_mask",)


def is_open_clip(tensors: dict[str, Tensor]) -> bool:
    """Whether the tensors have the names of open_clip's CLIP."""
    return {"visual.conv1.weight", "text_projection", "visual.proj"} <= tensors.keys()


def clip_from_open_clip(tensors: dict[str, Tensor]) -> CLIPModel:
    """Build transformers' CLIPModel from the weights of an open_clip model with 16 heads and exact GELU (ViT-H-14).

    Raises KeyError or RuntimeError if weights are missing or do not fit.
    """
    model = CLIPModel(_config(tensors))
    renamed = {}
    for name, tensor in tensors.items():
        if name not in BUFFERS:
            renamed |= {new: part.float() for new, part in _renamed(name, tensor).items()}
    model.load_state_dict(renamed)
    return model


def _config(tensors: dict[str, Tensor]) -> CLIPConfig:
    patches = tensors["visual.positional_embedding"].shape[0] - 1
    patch_size = tensors["visual.conv1.weight"].shape[-1]
    shared = {"num_attention_heads": NUM_HEADS, "hidden_act": "gelu"}
    vision = shared | _tower(tensors, "visual.transformer.resblocks.")
    vision |= {"image_size": round(patches**0.5) * patch_size, "patch_size": patch_size}
    text = shared | _tower(tensors, "transformer.resblocks.")
    text |= {
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "max_position_embeddings": tensors["positional_embedding"].shape[0],
        # With this id transformers pools at the token with the largest id, as open_clip does.
        "eos_token_id": 2,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=tensors["visual.proj"].shape[1])


def _tower(tensors: dict[str, Tensor], prefix: str) -> dict[str, int]:
    wide, narrow = tensors[f"{prefix}0.mlp.c_fc.weight"].shape
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix)}
    return {"hidden_size": narrow, "intermediate_size": wide, "num_hidden_layers": len(numbers)}


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Rename a tensor as in transformers; a joint projection of q, k and v is split into its parts."""
    for prefix, tower in TOWERS.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                parts = zip("qkv", tensor.chunk(3), strict=True)
                return {f"{layer}.self_attn.{letter}_proj.{kind}": part for letter, part in parts}
            module, _, kind = rest.rpartition(".")
            return {f"{layer}.{IN_BLOCK.get(module, module)}.{kind}": tensor}
    if name in ("visual.proj", "text_projection"):
        return {f"{'visual' if name == 'visual.proj' else 'text'}_projection.weight": tensor.T}
    module, _, kind = name.rpartition(".")
    return {AROUND.get(name, f"{NORMS.get(module, module)}.{kind}"): tensor}
