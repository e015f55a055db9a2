"""What launchers and libraries would change by environment variables is refused by name."""

import pytest
import torch
from trainers import train

from dpdmd.distributed.environment import REFUSED, require_neutral_environment
from dpdmd.distributed.processes import new_accelerator
from dpdmd.evaluate.generate import sample
from dpdmd.store.tensors import read_tensors

CHANGING = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "train.accumulation"),
    "ACCELERATE_DYNAMO_BACKEND": ("inductor", "train.compile"),
    "ACCELERATE_USE_FSDP": ("true", "train.shard"),
    "ACCELERATE_USE_DEEPSPEED": ("true", "train.shard"),
    "ACCELERATE_USE_MEGATRON_LM": ("true", "train.shard"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("true", "train.shard"),
    "ACCELERATE_USE_SAGEMAKER": ("true", "torchrun"),
    "DIFFUSERS_ATTN_BACKEND": ("flash", "torch chooses"),
    "DIFFUSERS_SDNQ_TRANSFORMERS": ("1", "model.dtype"),
    "NVIDIA_TF32_OVERRIDE": ("1", "train.precision"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("1", "train.precision"),
    "XLA_USE_BF16": ("1", "train.precision"),
    "XLA_DOWNCAST_BF16": ("1", "train.precision"),
}


def test_every_refused_variable_is_tested():
    assert CHANGING.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", CHANGING)
def test_a_variable_that_changes_what_is_computed_is_refused_by_name(monkeypatch, make_recipe, adapter, name):
    value, instead = CHANGING[name]
    monkeypatch.setenv(name, value)
    for call in (
        new_accelerator,
        lambda: train(make_recipe(), adapter, progress=False),
        lambda: sample("scenes", ["a red circle"]),
    ):
        with pytest.raises(ValueError, match=f"{name}={value} .*{instead}.*Unset it"):
            call()


def test_the_variables_of_a_plain_launch_change_no_bit(monkeypatch, make_recipe, adapter):
    """As `accelerate launch` sets them by default, and others that the recipe overrides."""
    plain = train(make_recipe("plain"), adapter, progress=False)
    launched = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DOWNCAST_BF16": "true",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_GRADIENT_CLIPPING": "0.001",
        "ACCELERATE_USE_FSDP": "False",
        "ACCELERATE_CPU_AFFINITY": "1",
        "FSDP_OFFLOAD_PARAMS": "true",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    require_neutral_environment()
    other = train(make_recipe("launched"), adapter, progress=False)
    mine, theirs = (read_tensors(folder / "student" / "student.safetensors") for folder in (plain, other))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("value", ["two", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got '{value}'"):
        new_accelerator()
