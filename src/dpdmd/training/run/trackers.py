"""Trackers that receive what goes to `metrics.jsonl` and the validation folder: tensorboard, Weights & Biases.

tensorboard/  wandb/ of the run folder
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker, WandBTracker
from pydantic import Field

from dpdmd.distributed.processes import on_all_processes
from dpdmd.store.errors import StoppedBySignal, library_errors
from dpdmd.store.files import write_json
from dpdmd.store.png import read_png, to_uint8
from dpdmd.store.state import Count, State, state_or_none
from dpdmd.training.run.folder import RunFolder

Tracker = TensorBoardTracker | WandBTracker

PROJECT = "dpdmd"  # of wandb, unless WANDB_PROJECT names another


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise ValueError, before any work, for a tracker that is not installed, and for wandb without a login."""
    for name in names:
        try:
            version(name)  # importable is not enough: a folder `wandb`, as wandb creates, is importable too
        except PackageNotFoundError:
            raise ValueError(
                f'output.trackers names {name}, which is not installed: pip install "dpdmd[{name}]"'
            ) from None
    if "wandb" in names and os.environ.get("RANK", "0") == "0":
        _require_login()


def _require_login() -> None:
    import wandb

    if wandb.setup().settings.mode in ("online", "shared"):
        try:
            wandb.login(verify=False)  # asks at a terminal
        except wandb.Error as error:
            raise ValueError(
                f"output.trackers: wandb cannot log in: {error} Without a login, set WANDB_MODE=offline"
            ) from None


def flat_settings(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """{dotted key: value} as trackers take them, lists as text, keys without a value (None) left out."""

    def plain(value: Any) -> bool | int | float | str:
        return value if isinstance(value, bool | int | float | str) else ", ".join(map(str, value))

    return {key: plain(value) for key, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Trackers:
    """The open trackers: all of the recipe's in the main process, none in the others.

    opened: each with the last step that it keeps from earlier sessions; up to there nothing is logged again.
    """

    opened: list[tuple[Tracker, int]]

    def log(self, row: dict[str, Any]) -> None:
        """Log a row of `metrics.jsonl` at its step."""
        step = row["step"]
        for tracker in self._without(step):
            tracker.log({key: value for key, value in row.items() if key != "step"}, step=step)

    def log_picture(self, step: int, path: Path) -> None:
        """Log the picture in the PNG file `path`, pixel by pixel the same."""
        for tracker in self._without(step):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": to_uint8(read_png(path)[None]).numpy()}, step=step, **options)

    def _without(self, step: int) -> list[Tracker]:
        """Those that have not logged this step yet."""
        return [tracker for tracker, logged in self.opened if step > logged]


@contextmanager
def open_trackers(
    names: tuple[str, ...],
    settings: dict[str, Any],
    run: RunFolder,
    *,
    step: int,
    last_step: int,
    is_main_process: bool,
) -> Iterator[Trackers]:
    """Start the trackers `names` and close them however the block ends; wandb records whether the run succeeded.

    step: updates done so far. last_step: the last that was logged, beyond `step` if the run was killed. Raises OSError
    in all processes for a tracker that does not start. `Accelerator.end_training` is not used, because it also ends the
    process group.
    """
    opened: list[tuple[Tracker, int]] = []
    exit_code = 1

    def start() -> None:
        for name in dict.fromkeys(names if is_main_process else ()):
            with library_errors(f"output.trackers: {name} does not start", kind=OSError):
                opened.append(_START[name](settings, run, step, last_step))

    try:
        on_all_processes(start)
        yield Trackers(opened)
        exit_code = 0
    except StoppedBySignal as stop:
        exit_code = stop.exit_code
        raise
    finally:
        for tracker, _ in opened:
            if isinstance(tracker, WandBTracker):
                tracker.tracker.finish(exit_code=exit_code)
            else:
                tracker.finish()


def _start_tensorboard(
    settings: dict[str, Any], run: RunFolder, step: int, last_step: int
) -> tuple[TensorBoardTracker, int]:
    from torch.utils.tensorboard.summary import hparams

    tracker = TensorBoardTracker("tensorboard", run.root, purge_step=step + 1)
    tracker.start()
    file_writer = tracker.writer.file_writer
    assert file_writer is not None  # it is open
    # `store_init_configuration` would show the settings as a separate run, and as another one at every resume.
    for summary in hparams(flat_settings(settings), {}):
        file_writer.add_summary(summary)
    return tracker, step


class WandbFile(State):
    """wandb/run.json."""

    id: str = Field(pattern=r"^[\w-]+$")
    last_step: Count


def _start_wandb(settings: dict[str, Any], run: RunFolder, step: int, last_step: int) -> tuple[WandBTracker, int]:
    """The same run at wandb in every session: `wandb/run.json` keeps its id and the last step logged.

    Online, wandb itself reports its last step. It does not know offline sessions, and renumbers overlapping steps when
    they are synced. The log does not suffice: a resumed run may be killed before it gets as far as the last session.
    """
    path = run.root / "wandb" / "run.json"
    found = state_or_none(path, WandbFile)
    if found is None:
        known = {"id": secrets.token_hex(4), "last_step": 0}
    else:
        known = {"id": found.id, "last_step": max(found.last_step, last_step)}
    write_json(path, known)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    tracker = WandBTracker(project, dir=run.root, name=run.root.name, id=known["id"], resume="allow")
    tracker.start()
    tracker.store_init_configuration(flat_settings(settings))
    return tracker, known["last_step"] if tracker.run.offline else tracker.run.starting_step - 1


_START: dict[str, Callable[[dict[str, Any], RunFolder, int, int], tuple[Tracker, int]]] = {
    "tensorboard": _start_tensorboard,
    "wandb": _start_wandb,
}
