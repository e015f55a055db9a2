"""Checkpoints: complete or absent, verified when read, the newest few kept.

A checkpoint is a folder `step-000300` of safetensors and `state.json`, which is written last and holds the SHA-256 of
every other file. It is written under a temporary name and renamed.
"""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dpdmd.files import read_json, read_tensors, sha256_of, write_json, write_tensors
from dpdmd.train.distribution import spread_as

STATE_FILE = "state.json"
PREFIX = "step-"
PARTIAL = ".tmp"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and its state: `step` student updates done in `seconds`, and whatever was added."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name`. Raises ValueError when the checkpoint has none."""
        return read_tensors(self.folder / f"{name}.safetensors")


def save_checkpoint(
    folder: str | Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder`/step-000300 with one safetensors file per name and `state` (it has "step"); drop all but `keep`.

    Raises OSError, with the older checkpoints untouched, when it cannot be written.
    """
    folder = Path(folder)
    final = folder / f"{PREFIX}{state['step']:06d}"
    temporary = folder / f".{final.name}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
        temporary.mkdir()
        for name, values in tensors.items():
            write_tensors(temporary / f"{name}.safetensors", values)
        sums = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / STATE_FILE, {**state, "sha256": sums})
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"could not write the checkpoint {final}: {reason}. Older checkpoints are untouched; make room or choose "
            "another output.folder, then go on with --resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: str | Path, *, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest undamaged checkpoint of `folder`, None when there is none at all; `say` hears of damaged ones.

    Raises ValueError when there are checkpoints and every one is damaged.
    """
    folders = _folders(Path(folder))
    for path in folders:
        damage = _damage(path)
        if damage is None:
            return Checkpoint(path, read_json(path / STATE_FILE))
        say(f"checkpoint {path} is damaged ({damage}); trying the one before")
    if folders:
        raise ValueError(f"every checkpoint in {folder} is damaged; start again with --overwrite")
    return None


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)


def _remove_partial(folder: Path) -> None:
    """What a process that was killed while writing left behind."""
    for path in folder.glob(f".{PREFIX}*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None when every file is as it was written."""
    try:
        state = read_json(folder / STATE_FILE)
        sums, _ = state["sha256"], state["step"]
    except (ValueError, KeyError, TypeError, OSError):
        return f"{STATE_FILE} is missing or broken"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_of(path) != expected:
            return f"{name} has changed since it was written"
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, "exp_avg/<parameter name>" and so on; empty before its first step."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_parameters(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Put back the values of parameters. Raises ValueError when names differ."""
    if tensors.keys() != parameters.keys():
        raise ValueError("the stored weights belong to another network")
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(spread_as(value, parameters[name]))


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. Raises ValueError when it belongs to another network."""
    optimizer.state.clear()
    for flat, value in tensors.items():
        key, _, name = flat.partition("/")
        if name not in parameters:
            raise ValueError(f"the stored optimiser state has {name!r}, which the network has not")
        parameter = parameters[name]
        # Fused AdamW counts its steps beside the parameter.
        optimizer.state[parameter][key] = value.to(parameter.device) if key == "step" else spread_as(value, parameter)
