"""What a result was made with: versions, commit, command, machine, memory."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dpdmd

PACKAGES = ("dpdmd", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")


def surroundings() -> dict[str, Any]:
    """Versions, commit and hardware this process runs with."""
    return {
        "versions": versions(),
        "commit": git_commit(),
        "command": sys.argv,
        "hardware": {
            "platform": platform.platform(),
            "processor": _processor(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages whose numbers matter."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, "+" appended when files differ; None outside of one."""
    package = Path(dpdmd.__file__).parent
    if not (package.parents[1] / ".git").exists():
        return None
    try:
        arguments = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_bytes() -> int:
    """Most memory this process has used: of the GPU when there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
