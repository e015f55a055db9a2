"""Training in two gloo processes, as torchrun starts them."""

import faulthandler
import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from tiny_adapter import TinyAdapter
from trainers import train

from dpdmd.models.load import FAMILIES
from dpdmd.recipe.schema import Recipe

# Imported once, in the process that all others are forked from.
PRELOADED = ["torch.distributed.checkpoint", "accelerate", "peft", "tiny_adapter", "dpdmd.training.loop"]
PRELOADED += [module for module, _ in FAMILIES.values()]


def train_tiny(recipe: Recipe, resume: bool = False) -> None:
    """Train the tiny family, in silence."""
    train(recipe, TinyAdapter(), resume=resume, progress=False)


def start_processes(
    function: Callable, *arguments, number: int = 2, on_machine: int | None = None
) -> list[multiprocessing.Process]:
    """Begin function(*arguments) in some processes of one group; on_machine: how many seem to share one machine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        context.Process(target=_work, args=(rank, number, on_machine, port, function, arguments), daemon=True)
        for rank in range(number)
    ]
    for process in processes:
        process.start()
    return processes


def in_processes(
    function: Callable, *arguments, number: int = 2, on_machine: int | None = None, seconds: float = 300
) -> None:
    """Call function(*arguments) in some processes of one group, all of which must succeed within `seconds`."""
    processes = start_processes(function, *arguments, number=number, on_machine=on_machine)
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * number, f"exit codes {codes}"


def _work(rank: int, number: int, on_machine: int | None, port: int, function: Callable, arguments: tuple) -> None:
    faulthandler.enable()  # an exit code alone does not say where a process crashed
    on_machine = on_machine or number
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % on_machine),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(on_machine),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
