"""What a result was made with: versions, commit, command, hardware, memory."""

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


def surroundings(command: str | None = None) -> dict[str, Any]:
    """Versions, commit, command and hardware of this process.

    command: what to run to get the same result; default: this process's own command line, as a list.
    """
    return {
        "versions": versions(),
        "commit": git_commit(),
        "command": own_command() if command is None else command,
        "hardware": {
            "platform": platform.platform(),
            "processor": _processor(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def own_command() -> list[str]:
    """This process's command line as one would type it, without folders of this machine before the program's name."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and sys.argv[0] == sys.modules["__main__"].__file__:
        return ["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if files were changed; None if not in one."""
    package = Path(dpdmd.__file__).parent
    if not (package.parents[1] / ".git").exists():
        return None
    try:
        arguments = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_bytes() -> int:
    """The most memory that this process has used so far: of the GPU if there is one, else resident."""
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
