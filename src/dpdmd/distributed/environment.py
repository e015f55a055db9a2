"""Environment variables of launchers and libraries that would change what is computed: refused by name.

A recipe says all that a student depends on. What these would change in addition is in no run folder.
"""

import os

OFF = ("", "0", "no", "none", "false", "off")
# Each with the values that change nothing, and what to use instead.
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1"), "accumulate by train.accumulation"),
    "ACCELERATE_DYNAMO_BACKEND": (OFF, "compile by train.compile"),
    "ACCELERATE_USE_FSDP": (OFF, "spread the networks by train.shard"),
    "ACCELERATE_USE_DEEPSPEED": (OFF, "spread the networks by train.shard"),
    "ACCELERATE_USE_MEGATRON_LM": (OFF, "spread the networks by train.shard"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (OFF, "spread the networks by train.shard"),
    "ACCELERATE_USE_SAGEMAKER": (OFF, "start with torchrun"),
    "DIFFUSERS_ATTN_BACKEND": (("", "native"), "torch chooses the kernel of attention"),
    "DIFFUSERS_SDNQ_TRANSFORMERS": (OFF, "quantise by model.dtype"),
    "NVIDIA_TF32_OVERRIDE": (("", "0"), "choose the number format by train.precision"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (OFF, "choose the number format by train.precision"),
    "XLA_USE_BF16": (OFF, "choose the number format by train.precision"),
    "XLA_DOWNCAST_BF16": (OFF, "choose the number format by train.precision"),
}


def require_neutral_environment() -> None:
    """Raises ValueError naming the variables that are set and would change what is computed."""
    found = [
        f"{name}={os.environ[name]} ({instead})"
        for name, (neutral, instead) in REFUSED.items()
        if os.environ.get(name, "").strip().lower() not in neutral
    ]
    if found:
        raise ValueError(
            f"the environment would change what is computed, and is in no recipe: {', '.join(found)}. Unset it; "
            "`accelerate launch` sets such variables by its options and its configuration file"
        )


def number_from(name: str) -> int:
    """The whole number in the environment variable `name`; 1 if it is not set. Raises ValueError for anything else."""
    text = os.environ.get(name) or "1"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"the environment variable {name} must be a whole number, got {text!r}")
    return int(text)
