"""A model on the hub that has its weights only as a variant, from a cache of the hub, without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dpdmd
from dpdmd.models.pipeline_files import only_variant
from dpdmd.store.files import read_json

PLAIN = ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
SHARDS = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (PLAIN, None),
        ([*PLAIN, "unet/diffusion_pytorch_model.fp16.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", *SHARDS], "fp16"),
        ([*PLAIN, *SHARDS], "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.bf16.safetensors"], "bf16"),
        (["unet/diffusion_pytorch_model.non_ema.safetensors", *SHARDS], None),
        (["sd_xl_base_1.0.safetensors", "unet/config.json"], None),
    ],
)
def test_the_variant_that_is_asked_for_is_that_of_the_parts_without_plain_weights(names, variant):
    assert only_variant(names) == variant


def cached_on_hub(folder: str, cache: Path, variant: str) -> None:
    """The cache of the hub after a download of OWNER/NAME me/tiny, whose files are all of a variant."""
    repository = cache / "models--me--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in list(snapshot.glob("*/*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def test_a_model_of_the_hub_with_only_a_variant_is_drawn_from_the_cache(sd3_folder, tmp_path):
    cached_on_hub(sd3_folder, tmp_path / "hub", "fp16")
    paths = {"HF_HUB_CACHE": str(tmp_path / "hub"), "DPDMD_CACHE": str(tmp_path / "cache")}
    environment = os.environ | paths | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(dpdmd.__file__).parents[1])}
    arguments = ["sample", "me/tiny", "--prompt", "a red circle", "--images-per-prompt", "1"]
    command = [sys.executable, "-m", "dpdmd", *arguments, "--num-inference-steps", "1", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(read_json(tmp_path / "out" / "manifest.json")["images"]) == 1
