"""Train and sample by the commands that a user would type, each in a separate process and never twice.

Separate processes make it possible to measure time and peak memory of each command. A finished command is not repeated.
"""

import fcntl
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from dpdmd.compare.arms import Run
from dpdmd.models.student_file import STUDENT_FOLDER
from dpdmd.recipe.toml import flatten, load_recipe
from dpdmd.store.files import make_folder, read_text, write_json, write_text
from dpdmd.store.state import Count, State, read_state
from dpdmd.training.run.folder import FailureFile, RunFolder

logger = logging.getLogger(__name__)

STOPPED_ERROR, USER_ERROR = 1, 2  # exit codes, as in `dpdmd.cli`
Command = tuple[str, ...]
Call = Callable[..., dict[str, Any]]


class CostFile(State):
    """cost.json: what the commands of a run took."""

    seconds: float
    peak_memory_bytes: Count


class CommandFile(State):
    """cost_train.json or cost_sample.json: a command that has finished, what it took, and how a training failed."""

    command: list[str]
    seconds: float = 0.0
    peak_memory_bytes: Count = 0
    failure: FailureFile | None = None


def run_all(
    runs: list[Run],
    out: Path,
    *,
    prompts: list[str],
    images_per_prompt: int,
    batch_size: int | None = None,
    jobs: int = 1,
) -> None:
    """Train and sample every run, `jobs` at a time, each on its share of the cores and on one of the GPUs.

    Small networks do not fill several cores, so that two jobs on a core each are faster than one after the other on
    both. A run whose losses are no longer finite has failed (see `failure`), and the others continue. When a command
    fails for another reason, or on Ctrl-C, the running commands finish or save, and no other starts. batch_size: images
    sampled at once.
    Raises ValueError, before anything starts, when `out` or a run's folder was made by other arguments or another
    process works in `out`, and for a command that refuses its arguments; ChildProcessError for a command that fails.
    """
    prompt_file, text = out / "prompts.txt", "\n".join(prompts) + "\n"
    if prompt_file.exists() and read_text(prompt_file) != text:
        raise ValueError(f"{prompt_file} has other prompts; choose another folder or remove this one")
    commands = [_commands(run, prompt_file, images_per_prompt) for run in runs]
    for run, own in zip(runs, commands, strict=True):
        _refuse_other(run, own)
    with _alone_in(out) as lock:
        write_text(prompt_file, text)
        extra = () if batch_size is None else ("--batch-size", str(batch_size))
        _side_by_side(list(zip(runs, commands, strict=True)), jobs, partial(_call, lock=lock, sampling=extra))


def failure(run: Run) -> dict[str, Any] | None:
    """{"step", "error"} of a training that failed, else None."""
    record = _record(run, "train")
    failed = read_state(record, CommandFile).failure if record.exists() else None
    return failed and failed.model_dump()


def _commands(run: Run, prompt_file: Path, images_per_prompt: int) -> list[Command]:
    commands: list[Command] = []
    if run.arm.recipe is not None:
        sets = [part for setting in _settings(run) for part in ("--set", setting)]
        commands.append(("train", run.arm.recipe, *sets))
    model = run.arm.model or str(run.folder / STUDENT_FOLDER)  # the last student, not the best
    places = ("--prompts", str(prompt_file), "--out", str(run.folder / "samples"))
    images = ("--images-per-prompt", str(images_per_prompt), "--seed", "0")
    return [*commands, ("sample", model, *places, *images, *run.arm.sampling)]


def _settings(run: Run) -> list[str]:
    return [*run.arm.settings(), f"output.folder={run.folder}"]


def _record(run: Run, name: str) -> Path:
    """The file that says which command finished and what it cost."""
    return run.folder / f"cost_{name}.json"


def _refuse_other(run: Run, commands: list[Command]) -> None:
    for command in commands:
        record = _record(run, command[0])
        made_by = read_state(record, CommandFile).command if record.exists() else list(command)
        if made_by != list(command):
            raise ValueError(
                f"{run.folder} was made by `dpdmd {shlex.join(made_by)}`, and this comparison needs "
                f"`dpdmd {shlex.join(command)}`; choose another folder or remove this one"
            )
    # The recipe's file may have changed since.
    if run.arm.recipe is not None and (run.folder / "recipe.toml").exists():
        recipe = load_recipe(run.arm.recipe, _settings(run))
        RunFolder(run.folder).refuse_if_unusable(flatten(recipe), resume=True, overwrite=False)


@contextmanager
def _alone_in(out: Path) -> Iterator[int]:
    """Keep other processes from working in `out`; yields the lock, which commands inherit.

    A command that outlives its killed comparison keeps the lock, so that it is not started twice.
    """
    make_folder(out, "--out")
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process works in {out}, perhaps a command of a comparison that was killed; wait for it, end "
                "it, or choose another folder"
            ) from None
        yield file.fileno()


def _side_by_side(works: list[tuple[Run, list[Command]]], jobs: int, call: Call) -> None:
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    stopped = Event()

    def work(run: Run, commands: list[Command]) -> None:
        if stopped.is_set():
            return
        slot = slots.get()
        try:
            _run_one(run, commands, partial(call, environment=_environment(slot, jobs)))
        except BaseException:
            stopped.set()
            raise
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, *arguments) for arguments in works]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Environment variables of the commands in one of `jobs` slots, in addition to those of this process."""
    if jobs == 1:
        return {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(slot)}
    gpus = _gpus()
    return environment | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def _gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use."""
    import torch

    number, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(number)] if visible is None else visible.split(",")[:number]


def _run_one(run: Run, commands: list[Command], call: Call) -> None:
    """Run the commands that have not finished; an interrupted training is resumed.

    Writes cost.json: wall-clock "seconds" of all commands, and the largest "peak_memory_bytes" of any of them.
    """
    costs = []
    for command in commands:
        costs.append(_once(run, command, call))
        if "failure" in costs[-1]:
            return
    total = {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
    }
    write_json(run.folder / "cost.json", total)


def _once(run: Run, command: Command, call: Call) -> dict[str, Any]:
    """Run a command unless it has finished before; returns what it cost then or now."""
    record = _record(run, command[0])
    if record.exists():
        return read_state(record, CommandFile).model_dump(exclude_none=True)
    is_begun = command[0] == "train" and (run.folder / "recipe.toml").exists()
    cost = call([*command, *(["--resume"] if is_begun else [])])
    code, failed = cost.pop("exit_code"), RunFolder(run.folder).failure
    cost = {"command": list(command), **cost}
    if code == STOPPED_ERROR and command[0] == "train" and failed.exists():
        cost["failure"] = read_state(failed, FailureFile).model_dump()
        logger.warning("%s failed and is left out: %s", run.folder, cost["failure"]["error"])
    elif code:
        kind = ValueError if code == USER_ERROR else ChildProcessError
        raise kind(f"dpdmd {shlex.join(command)} ended with exit code {code}")
    write_json(record, cost)
    return cost


def _in_words(arguments: list[str]) -> str:
    verb = {"train": "Training", "sample": "Drawing with"}[arguments[0]]
    return f"{verb} {Path(arguments[1]).parent.name if arguments[1].endswith(STUDENT_FOLDER) else arguments[1]}"


def _call(
    arguments: list[str], *, environment: dict[str, str], lock: int, sampling: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run `dpdmd ARGUMENTS` in a separate process; returns its "seconds", "peak_memory_bytes" and "exit_code".

    sampling: further arguments of `sample`, which change no image. lock: the file that the process keeps locked.
    """
    arguments = [*arguments, *(sampling if arguments[0] == "sample" else ())]
    logger.info("\n%s:\n$ dpdmd %s", _in_words(arguments), shlex.join(arguments))
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dpdmd", *arguments], env=os.environ | environment, pass_fds=[lock]
    )
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        # The terminal sends Ctrl-C to the child as well: let it save first.
        os.wait4(process.pid, 0)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": usage.ru_maxrss * unit,
        "exit_code": process.returncode,
    }
