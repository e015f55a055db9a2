"""A pipeline folder with random weights, made from configurations: as large as the published one, no download."""

import math
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.method.randomness import generator
from dpdmd.models.base import ModelAdapter, empty_network
from dpdmd.store.files import atomic_folder, read_json, write_json
from dpdmd.store.tensors import write_tensors

SHARD = 2**30  # bytes of a file: large networks are published in several
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 768}
# Published sizes of text encoders: CLIP-L, and the OpenCLIP bigG of Stable Diffusion XL.
CLIP_L = CLIP | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = CLIP | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280, "hidden_act": "gelu"}
TEXTS = {
    "StableDiffusionPipeline": {"text_encoder": ("CLIPTextModel", CLIP_L)},
    "StableDiffusionXLPipeline": {
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
    },
}


def write_pipeline(adapter: ModelAdapter, out: Path, *, seed: int = 0, texts: bool = False) -> int:
    """Write the pipeline whose configurations `adapter` has read as the folder `out`; returns its bytes.

    Weights are bf16, in files of SHARD bytes, one file in memory at a time. texts: also text encoders of the published
    size and a small tokenizer. Raises ValueError for texts of a family whose text encoders are not known here.
    """
    known = TEXTS.get(adapter.pipeline_class.__name__, {})
    if texts and not known:
        raise ValueError(f"no sizes of text encoders are known of a {adapter.pipeline_class.__name__}")
    source = Path(adapter.source)
    with atomic_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        index = read_json(source / "model_index.json")
        with torch.device("meta"):
            vae: Any = adapter.vae_class.from_config(adapter.vae_config)  # pyright: ignore[reportAttributeAccessIssue]
        for name, network in ((adapter.network_name, empty_network(adapter)), ("vae", vae)):
            index[name] = ["diffusers", type(network).__name__]
            write_weights(network, folder / name, "diffusion_pytorch_model", seed=seed)
        index["scheduler"] = ["diffusers", read_json(source / "scheduler" / "scheduler_config.json")["_class_name"]]
        for name, (kind, config) in known.items() if texts else ():
            tokenizer = name.replace("text_encoder", "tokenizer")
            index |= {name: ["transformers", kind], tokenizer: ["transformers", "PreTrainedTokenizerFast"]}
            _write_texts(folder, name, tokenizer, kind, config, seed)
        write_json(folder / "model_index.json", index)
    return folder_bytes(out)


def _write_texts(folder: Path, name: str, tokenizer: str, kind: str, config: dict[str, Any], seed: int) -> None:
    import transformers

    from tools.pretrain.text_encoders import new_tokenizer

    words = new_tokenizer()
    words.model_max_length = config["max_position_embeddings"]
    words.save_pretrained(folder / tokenizer)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    with torch.device("meta"):
        network = getattr(transformers, kind)(transformers.CLIPTextConfig(**config, **ends))
    network.config.save_pretrained(folder / name)
    write_weights(network, folder / name, "model", seed=seed)


def write_weights(network: nn.Module, folder: Path, stem: str, *, seed: int) -> None:
    """Write random bf16 weights for a network on the meta device, file by file, with the index of several files."""
    tensors = network.state_dict()
    starts, size = [0], 0
    for i, tensor in enumerate(tensors.values()):
        if size and size + 2 * tensor.numel() > SHARD:
            starts, size = [*starts, i], 0
        size += 2 * tensor.numel()
    names, where = list(tensors), {}
    for number, (start, end) in enumerate(pairwise([*starts, len(names)]), start=1):
        several = f"-{number:05d}-of-{len(starts):05d}" if len(starts) > 1 else ""
        file = f"{stem}{several}.safetensors"
        shard = {name: random_weight(name, tensors[name], seed) for name in names[start:end]}
        write_tensors(folder / file, shard, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
    if len(starts) > 1:
        total = sum(2 * tensor.numel() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def random_weight(name: str, like: Tensor, seed: int) -> Tensor:
    """A weight of the shape of `like`, which keeps the size of what passes through.

    Matrices and kernels are normal with variance 1 / (numbers that are added), scales of norms 1, biases 0.
    """
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim < 2:
        return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    weight = torch.randn(like.shape, generator=generator(seed, name))
    return (weight / math.sqrt(like[0].numel())).bfloat16()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, each once if it has several names; 0 if there is none."""
    return sum({stat.st_ino: stat.st_size for stat in _stats(folder)}.values())


def _stats(folder: Path) -> Iterator[Any]:
    return (path.stat() for path in folder.rglob("*") if path.is_file())
